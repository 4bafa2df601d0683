"""Values as text for a person: sizes, times, tables. rich on a terminal, plain columns elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size

from builder.sizes import size_text

_STYLES: Mapping[str, str] = {
    "built": "green",
    "stale": "yellow",
    "missing": "red",
    "unlinked": "yellow",
    "pruned": "dim",
    "unplanned": "yellow",
    "failed gate": "red",
}


def size(nbytes: float | None) -> str:
    return "-" if nbytes is None else size_text(nbytes)


def count(number: int, noun: str) -> str:
    """1 base, 2 bases."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def ago(created: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in one unit."""
    if created is None:
        return "-"
    try:
        seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(created)).total_seconds()
    except ValueError:
        return created
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def is_rich() -> bool:
    """Whether stdout is a terminal that takes more than plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Prints a table; the columns named in `left` are text, the others figures. Empty columns go, and on a
    terminal that is too narrow those of `optional`, the first first.
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
