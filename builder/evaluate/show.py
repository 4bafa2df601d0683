"""The table that `doit eval:TARGET` prints."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from builder.console.words import size_text
from builder.evaluate.results import Result
from builder.evaluate.statistics import Figure
from builder.evaluate.threshold import Search, Threshold
from builder.project.project import Project
from builder.project.status import status_of


def show(target: str, results: Mapping[str, Result]) -> None:
    """Under the target's name one row for each figure, on stdout: value, 95 % interval, observations."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (target, "value", "95 % interval", "n"):
        right = heading in ("value", "n")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "n")
    for name, result in results.items():
        for metric, figure in result.figures.items():
            table.add_row(f"{name}.{metric}", number(figure.value), interval(figure), figure.counted)
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def show_threshold(project: Project, found: Threshold) -> None:
    """One row for each target, from small to large, and the answer as a sentence."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("target", "size", "bits/weight", "meets the requirements"):
        right = heading in ("size", "bits/weight")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading == "target")
    for name in found.search.order:
        passes = found.search.passes.get(name)
        said = "not measured" if passes is None else "yes"
        if passes and found.open[name]:
            said += "; " + "; ".join(map(str, found.open[name]))
        if passes is False:
            said = "no: " + "; ".join(map(str, found.misses[name]))
        row = status_of(project, project.spec.target(name))
        size = "-" if row.size is None else size_text(row.size)
        bits = "-" if row.bits_per_weight is None else f"{row.bits_per_weight:.3f}"
        table.add_row(name, size, bits, said)
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    with console.capture() as shown:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in shown.get().splitlines()))
    console.print(answer(found.search))
    for small, large in found.search.exceptions:
        console.print(f"size does not order them: {small} passes, {large} is larger and does not")


def answer(search: Search) -> str:
    """What was found, and what was not looked at."""
    if not search.unasked:
        return f"{search.found} is the smallest that passes"
    return f"{search.found} is the smallest found; smaller ones not measured: {', '.join(search.unasked)}"


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{max(digits, 3) if abs(value) <= 1 else digits}f}"


def interval(figure: Figure) -> str:
    if figure.interval is None:
        return ""
    low, high = figure.interval
    return f"{number(low)} to {number(high)}"
