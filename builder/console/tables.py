"""Tables for a person: coloured and fitted to the width of a terminal, elsewhere plain columns.

One rule for all: the first column names what a row is about, and it is never left out nor cut. Where a
terminal is too narrow, the other columns go, the least important first. The last column of text may take
several lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from textwrap import wrap

_STYLES: Mapping[str, str] = {
    "built": "green",
    "passes": "green",
    "out of date": "yellow",
    "not shown": "yellow",
    "not planned": "yellow",
    "not built": "red",
    "not kept": "dim",
    "not measured": "dim",
    "misses": "red",
}
_GAP = 2
_LEAST = 24  # characters a line of the last column may be cut to before another column goes


def is_rich() -> bool:
    """Whether stdout is a terminal that takes more than plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str] = (),
    unimportant: Sequence[str] = (),
) -> None:
    """Prints a table on stdout. The columns named in `left` are text, the other columns are figures.

    Empty columns are left out. On a narrow terminal those of `unimportant` go first, in that order, then
    the others from the right.
    """
    used = [i for i, _ in enumerate(headings) if not rows or any(row[i] not in ("", "-") for row in rows)]
    if not used:
        return
    text = {i for i in used if headings[i] in left}
    room = get_terminal_size().columns if is_rich() else None
    widths = {i: max(len(cell) for cell in (headings[i], *(row[i] for row in rows))) for i in used}
    if room is not None:
        used = fitting(
            used, widths, [headings.index(name) for name in unimportant if name in headings], text, room
        )
        widths |= _last_width(used, widths, text, room)
    for number, row in enumerate([headings, *rows]):
        for line in _lines([row[i] for i in used], [widths[i] for i in used], [i in text for i in used]):
            _print(line, "bold" if number == 0 else None)


def fitting(
    used: Sequence[int], widths: Mapping[int, int], unimportant: Sequence[int], text: set[int], room: int
) -> list[int]:
    """The columns that a terminal of `room` characters has room for. The first column always stays."""
    kept = list(used)
    rest = [i for i in reversed(used[1:]) if i not in unimportant]
    for going in (i for i in (*unimportant, *rest) if i in used[1:]):
        last = kept[-1]
        least = min(widths[last], _LEAST) if last in text else widths[last]
        if sum(widths[i] + _GAP for i in kept[:-1]) + least <= room:
            break
        kept.remove(going)
    return kept


def _last_width(used: Sequence[int], widths: Mapping[int, int], text: set[int], room: int) -> dict[int, int]:
    """The width of the last column where it is text: what the others leave."""
    last = used[-1]
    if last not in text or len(used) == 1:
        return {}
    return {last: min(widths[last], max(_LEAST, room - sum(widths[i] + _GAP for i in used[:-1])))}


def _lines(
    cells: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]
) -> list[list[tuple[str, int, bool]]]:
    """One row as lines of (text, width, is text). Only the last cell takes more than one line."""
    *first, last = cells
    pieces = [last]
    if first and len(last) > widths[-1]:
        pieces = wrap(last, widths[-1], break_on_hyphens=False) or [last]
    rows = [[*first, pieces[0]], *([*("" for _ in first), piece] for piece in pieces[1:])]
    return [list(zip(row, widths, is_text, strict=True)) for row in rows]


def _print(line: Sequence[tuple[str, int, bool]], style: str | None) -> None:
    cells = [cell.ljust(width) if is_text else cell.rjust(width) for cell, width, is_text in line]
    if not is_rich() or os.environ.get("NO_COLOR"):
        print((" " * _GAP).join(cells).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(" " * _GAP).join(
        Text(padded, style=style or _STYLES.get(cell, ""))
        for padded, (cell, _, _) in zip(cells, line, strict=True)
    )
    shown.rstrip()
    Console(highlight=False).print(shown, no_wrap=True, overflow="ignore", crop=False)
