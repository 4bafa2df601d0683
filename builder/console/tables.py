"""Tables for a person: rich prints them on a terminal, and elsewhere they are plain columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size

_STYLES: Mapping[str, str] = {
    "built": "green",
    "stale": "yellow",
    "missing": "red",
    "unlinked": "yellow",
    "pruned": "dim",
    "unplanned": "yellow",
    "failed gate": "red",
}


def is_rich() -> bool:
    """Whether stdout is a terminal that takes more than plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Prints a table on stdout. The columns named in `left` are text, the other columns are figures.

    Empty columns are left out. On a terminal that is too narrow, the columns of `optional` are left out one
    after the other, in the given order.
    """
    used = [i for i, _ in enumerate(headings) if not rows or any(row[i] not in ("", "-") for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for heading in optional if is_rich() else ():
        if sum(widths[i] + 2 for i in used) - 2 > get_terminal_size().columns:
            used = [i for i in used if headings[i] != heading]
    headings = [headings[i] for i in used]
    rows = [[row[i] for i in used] for row in rows]
    aligned = [heading in left for heading in headings]
    if is_rich():
        _rich_table(headings, rows, aligned)
        return
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for row in [headings, *rows]:
        cells = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, aligned, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], aligned: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, (heading, is_left) in enumerate(zip(headings, aligned, strict=True)):
        last = index == len(headings) - 1
        made.add_column(
            heading,
            justify="left" if is_left else "right",
            no_wrap=not (last or index == 0),
            overflow="fold" if index == 0 else "ellipsis",
            min_width=min(len(heading), 12),
        )
    for row in rows:
        made.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(made)
