"""The words for values: sizes, counts, times, paths, names and lists. Pure."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

_HERE = "BUILDER_HERE"
_LONGEST = 60
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
_MOST_WORDS = 12
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,3})"


def size_text(nbytes: float | None) -> str:
    """A size in decimal units with three digits, such as 92.6 MB (1 MB = 10^6 bytes). "-" for None."""
    if nbytes is None:
        return "-"
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.1f} {unit}"


def size_of_text(text: str) -> int | None:
    """The number of bytes that "16GB", "1.5 MiB" or "200 kB" stands for. None for other text."""
    match = re.fullmatch(_SIZE, text)
    factor = _UNITS.get(match[2].upper()) if match else None
    return round(float(match[1]) * factor) if match and factor else None


def number(value: float) -> str:
    """A figure with at least three significant digits, at most six decimals, and no exponent if it is
    readable.
    """
    if not math.isfinite(value) or abs(value) < 1e-6:
        return f"{value:.3g}"
    digits = max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{max(digits, 3) if abs(value) <= 1 else digits}f}"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 base, 2 bases."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float | None) -> str:
    """A duration such as 5.2 s, 3 min 20 s or 1 h 05 min. "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def ago(created: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in one unit. "-" for None. Other text is returned as it is."""
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


def stand_in(folder: Path) -> None:
    """Notes where the person is, for a program that works in another folder. Worker processes inherit it."""
    os.environ[_HERE] = os.fspath(folder)


def here() -> Path:
    """The folder in which the person typed the command."""
    noted = os.environ.get(_HERE)
    return Path(noted) if noted else Path.cwd()


def from_here(path: Path) -> str:
    """A path as the person can use it: relative to where the person is, or absolute where that is shorter."""
    try:
        whole = path.absolute()
        near = os.path.relpath(whole, here())
    except (ValueError, OSError):
        return str(path)
    return near if len(near) < len(str(whole)) else str(whole)


def dotted(*keys: str) -> str:
    """A key as TOML writes it: a.b, a."b c"."""
    return ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", k) else quoted(k) for k in keys)


def quoted(text: str) -> str:
    """Text in quotes, on one line, cut to 60 characters, without characters that a terminal acts upon."""
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
    """The word of `words` that `word` is probably a misspelling of, or None."""
    if len(word) > _LONGEST:
        return None
    from difflib import get_close_matches  # takes 5 ms, and only a wrong file needs it

    by_lower = {w.lower(): w for w in words}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return by_lower[close[0]] if close else None


def suggestion(word: str, words: Sequence[str]) -> str:
    """`; did you mean "x"?`, or the words that are possible."""
    close = nearest(word, words)
    return f"; did you mean {quoted(close)}?" if close else f" (possible: {listed(words)})"


def listed(values: Sequence[object], last: str = "") -> str:
    """Values as a list: "a, b, c", or with `last` = "or": "a, b or c". At most 12 values are named."""
    words = [v if isinstance(v, str) else shown(v) for v in values]
    if len(words) > _MOST_WORDS:
        return ", ".join(words[:_MOST_WORDS]) + f" and {len(words) - _MOST_WORDS} more"
    if last and len(words) > 1:
        return f"{', '.join(words[:-1])} {last} {words[-1]}"
    return ", ".join(words)


def one_line(said: BaseException | str, longest: int = 300) -> str:
    """What a library said, on one line and without the full stop at its end.

    An error without text is called by its name. For an exit, it is the error that led to it.
    """
    if isinstance(said, SystemExit) and said.__context__ is not None:
        said = said.__context__
    text = " ".join(str(said).split()).rstrip(".")
    if not text and isinstance(said, BaseException):
        return type(said).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def said_loss(loss: float | None) -> str:
    """`  loss 0.123`, or nothing."""
    return "" if loss is None else f"  loss {loss:.3g}"
