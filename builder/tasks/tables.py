"""Prints the tables at the end of a task: what was built, measured or found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.build.one_pass import Built
from builder.console.tables import print_table
from builder.console.words import from_here, number, size_text
from builder.evaluate.results import Result, interval_text
from builder.evaluate.threshold import Threshold, answer
from builder.project.project import Project
from builder.project.status import status_of


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
        ("target", "size", "bits/weight", "blocks built", "reused", "seconds"), rows, left=("target",)
    )


def print_results(target: str, results: Mapping[str, Result]) -> None:
    """Prints a table with one row for each figure of a target: value, 95 % interval, observations."""
    rows = [
        [f"{name}.{metric}", number(figure.value), interval_text(figure), figure.counted]
        for name, result in results.items()
        for metric, figure in result.figures.items()
    ]
    print_table((target, "value", "95 % interval", "n"), rows, left=(target, "95 % interval"))


def print_threshold(project: Project, found: Threshold) -> None:
    """Prints a table with one row for each target, from small to large, and the answer as a sentence."""
    rows = []
    for name in found.search.order:
        row = project.spec.target(name)
        status = status_of(project, row)
        bits = "-" if status.bits_per_weight is None else f"{status.bits_per_weight:.3f}"
        rows.append([name, size_text(status.size), bits, _verdict(found, name)])
    headings = ("target", "size", "bits/weight", "meets the requirements")
    print_table(headings, rows, left=("target", "meets the requirements"))
    print(answer(found.search))
    for small, large in found.search.exceptions:
        print(f"size does not order them: {small} passes, {large} is larger and does not")


def _verdict(found: Threshold, name: str) -> str:
    match found.search.passes.get(name):
        case None:
            return "not measured"
        case False:
            return "no: " + "; ".join(map(str, found.misses[name]))
    return "; ".join(["yes", *map(str, found.open[name])])
