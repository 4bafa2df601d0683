"""Prints the tables at the end of a task: what was built, measured or found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.build.one_pass import Built
from builder.console.tables import print_table
from builder.console.words import from_here, number, size_text
from builder.evaluate.results import Result, figures, interval_text, missed, passing
from builder.evaluate.seeds import SeedsThreshold
from builder.evaluate.seeds import answer as answer_of_seeds
from builder.evaluate.threshold import Search, Threshold, answer
from builder.project.project import Project
from builder.project.status import status_of
from builder.spec.seeds import seed_name
from builder.spec.types import Target
from builder.store.releases import PRODUCTION


def print_built(results: Sequence[Built]) -> None:
    """Prints the path of each target, and a table with one row for each target."""
    for built in results:
        print(from_here(built.path))
    rows = [
        [
            built.name,
            size_text(built.size),
            f"{built.bits_per_weight:.3f}",
            str(built.made),
            str(built.reused),
            f"{built.seconds:.1f}",
        ]
        for built in results
    ]
    print_table(
        ("target", "size", "bits/weight", "blocks built", "reused", "seconds"),
        rows,
        left=("target",),
        unimportant=("seconds", "bits/weight"),
    )


def print_results(target: Target, results: Mapping[str, Result]) -> None:
    """Prints a row for each figure of a target (value, interval, observations), and whether it passes."""
    rows = [
        [f"{name}.{metric}", number(figure.value), interval_text(figure), figure.counted]
        for name, result in results.items()
        for metric, figure in figures(result)
    ]
    interval = "95 % interval"
    print_table((target.name, "value", interval, "n"), rows, left=(target.name, interval), unimportant=("n",))
    if not missed(target.model.require, results):  # what is missed is said as an error
        print(passing(target.name, target.model.require, results))


def print_release(project: Project) -> None:
    """Prints what production is, for a release that has nothing to move."""
    print(f"{PRODUCTION} is {project.spec.production} already")


def print_publication(outcome: str) -> None:
    """Prints what a publication has sent, or that there was nothing to send."""
    print(outcome)


def print_threshold(project: Project, found: Threshold) -> None:
    """Prints a table with one row for each target, from small to large, and the answer as a sentence."""
    rows = []
    for name in found.search.order:
        status = status_of(project, project.spec.target(name))
        bits = "-" if status.bits_per_weight is None else f"{status.bits_per_weight:.3f}"
        rows.append([name, size_text(status.size), bits, found.verdict(name), found.details(name)])
    print_table(
        ("target", "size", "bits/weight", "result", "why"),
        rows,
        left=("target", "result", "why"),
        unimportant=("bits/weight",),
    )
    _print_answer(answer(found.search), found.search)


def print_seeds_threshold(project: Project, found: SeedsThreshold) -> None:
    """Prints a table with one row for each variant, and the answer.

    Each seed has a column with its verdict. Each required figure has one that says how far the seeds differ.
    """
    seeds, figures = [seed_name(model) for model in found.models], found.required
    rows = []
    for variant in found.search.order:
        status = status_of(project, project.spec.target(f"{found.models[0]}_{variant}"))
        verdicts = [found.verdict(variant, model) for model in found.models]
        spreads = [_spread(found.values(variant, metric)) for metric in figures]
        rows.append([variant, size_text(status.size), *verdicts, *spreads])
    headings = ("variant", "size", *seeds, *map(str, figures))
    print_table(headings, rows, left=("variant", *seeds), unimportant=("size",))
    _print_answer(answer_of_seeds(found.search), found.search)


def _spread(values: Sequence[float]) -> str:
    """The smallest and the largest of some values. "-" without any."""
    ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values))) if values else ("-",)
    return " to ".join(ends)


def _print_answer(said: str, search: Search) -> None:
    print(said)
    for small, large in search.exceptions:
        print(f"size does not order them: {small} passes, {large} is larger and does not")
