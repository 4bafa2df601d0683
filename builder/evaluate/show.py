"""The table that `doit eval:TARGET` prints."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from builder.evaluate.results import Result
from builder.evaluate.statistics import Figure


def show(target: str, results: Mapping[str, Result]) -> None:
    """One row for each figure, on stdout: value, 95 % interval, number of observations."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("target", "figure", "value", "95 % interval", "n"):
        right = heading in ("value", "n")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for name, result in results.items():
        for metric, figure in result.figures.items():
            table.add_row(target, f"{name}.{metric}", number(figure.value), interval(figure), str(figure.n))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{max(digits, 3) if abs(value) <= 1 else digits}f}"


def interval(figure: Figure) -> str:
    if figure.low == figure.high:
        return ""
    return f"{number(figure.low)} to {number(figure.high)}"
