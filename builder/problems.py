"""What is wrong with a declaration: collected, sorted by line, raised once. And the words for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from builder.errors import SpecError
from builder.toml_lines import Lines, Path

_LONGEST = 60
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
_MOST_WORDS = 12


class Place(NamedTuple):
    """A value in the file: the path that leads there, and how a message names the table around it."""

    path: Path
    title: str

    def key(self, *keys: str | int) -> Place:
        """A key of this table: its own line, the table's title."""
        return Place((*self.path, *keys), self.title)


def table_place(*keys: str) -> Place:
    return Place(keys, f"[{dotted(*keys)}]")


class Problems:
    """Collects problems; `raise_any` raises one SpecError that lists them all."""

    def __init__(self, label: str, lines: Lines) -> None:
        self._label = label
        self._lines = lines
        self._found: list[tuple[int, str]] = []

    def add(self, place: Place, what: str) -> None:
        self._found.append((self.line(place), f"{place.title} {what}".lstrip()))

    def line(self, place: Place) -> int:
        return self._lines.at(place.path)

    def raise_any(self) -> None:
        """Raises SpecError when anything was added."""
        if not self._found:
            return
        found = sorted(dict.fromkeys(self._found), key=lambda problem: problem[0])
        raise SpecError(problems="\n".join(f"{self._label}:{line}: {what}" for line, what in found))


def dotted(*keys: str) -> str:
    """A key as TOML writes it: a.b, a."b c"."""
    return ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", k) else quoted(k) for k in keys)


def quoted(text: str) -> str:
    """Text in quotes, on one line, without characters that a terminal would act upon."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return '"' + "".join(_visible(c) for c in short) + '"'


def _visible(char: str) -> str:
    if escape := _ESCAPES.get(char):
        return escape
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def shown(value: object) -> str:
    """A value as TOML writes it, shortened."""
    match value:
        case str():
            return quoted(value)
        case bool():
            return "true" if value else "false"
        case int() if abs(value) >= 10**20:
            return f"{value:#x}"[:12] + "..."
    return str(value)


def found(value: object) -> str:
    """What a value is: `the string "x"`, `a table`."""
    match value:
        case str():
            return f"the string {shown(value)}"
        case bool():
            return f"the boolean {shown(value)}"
        case int():
            return f"the integer {shown(value)}"
        case float():
            return f"the float {shown(value)}"
        case dict():
            return "a table"
        case list():
            return "an array"
    return "a date or time"


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that `word` may be a slip of."""
    if len(word) > _LONGEST:
        return None
    from difflib import get_close_matches  # 5 ms, for a file that is wrong

    by_lower = {w.lower(): w for w in words}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return by_lower[close[0]] if close else None


def suggestion(word: str, words: Sequence[str]) -> str:
    """`; did you mean "x"?`, or the words that are possible."""
    close = nearest(word, words)
    return f"; did you mean {quoted(close)}?" if close else f" (possible: {listed(words)})"


def listed(values: Sequence[object], last: str = "") -> str:
    """a, b, c; with `last` "or": a, b or c."""
    words = [v if isinstance(v, str) else shown(v) for v in values]
    if len(words) > _MOST_WORDS:
        return ", ".join(words[:_MOST_WORDS]) + f" and {len(words) - _MOST_WORDS} more"
    if last and len(words) > 1:
        return f"{', '.join(words[:-1])} {last} {words[-1]}"
    return ", ".join(words)
