"""Reads a TOML file that a person wrote, and finds the line of each key, which tomllib does not tell.

A file that cannot be read raises SpecError. The scan for lines reads text that tomllib has accepted. So the
scan needs to know only where strings, keys and brackets begin and end. A scan that loses its way costs exact
line numbers and nothing else: `Lines.at` falls back to the line of the table.
"""

from __future__ import annotations

import re
import stat
import tomllib
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from builder.console.words import dotted, from_here
from builder.errors import SpecError

MOST_BYTES = 1 << 20
_WIDEST = 100

_AT = r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"
KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*+")
_BETWEEN = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*+")
_KEY = re.compile(r"""[ \t]*([A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*')[ \t]*""")
_SCALAR = re.compile(
    r'''"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*+"{3,5}'''
    r"""|'''(?:[^']|'{1,2}(?!'))*+'{3,5}"""
    r'''|"(?:[^"\\\n]|\\.)*+"'''
    r"""|'[^'\n]*'"""
    r"""|[^,\]}\[{#\n]+"""
)
_DEEPEST = 8  # no path that is looked up is longer


class Lines:
    """The line of each path, from 1.

    A path consists of the keys that lead to a value, and of the indices of arrays on the way.
    """

    def __init__(self, written: dict[KeyPath, int], implied: dict[KeyPath, int]) -> None:
        self._written = written
        self._implied = implied

    def at(self, path: KeyPath) -> int:
        """The line of `path`, else the line of the nearest table or array around `path`, else 1."""
        for end in range(len(path), 0, -1):
            line = self._written.get(path[:end]) or self._implied.get(path[:end])
            if line:
                return line
        return 1


class _Lost(Exception):
    """The text is not what tomllib accepts."""


def index_lines(text: str) -> Lines:
    """Where every table, key and array element of `text` stands."""
    scan = _Scan(text)
    with suppress(_Lost, tomllib.TOMLDecodeError):  # the lines found so far are kept
        scan.document()
    return Lines(scan.written, scan.implied)


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.written: dict[KeyPath, int] = {}  # a header or a key that says just this path
        self.implied: dict[KeyPath, int] = {}  # a.b implies a

    def document(self) -> None:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self.pos < len(self.text):
            if self._next() == "[":
                start = self.pos
                while self._next() == "[":
                    self.pos += 1
                table = self._key()
                self._record((), table, start)
                while self._next() == "]":
                    self.pos += 1
            else:
                self._value(self._assignment(table))
            self._skip(_BLANK)

    def _value(self, path: KeyPath) -> None:
        """Passes over one value. This is a loop, because arrays may be nested as deep as tomllib reads."""
        around: list[tuple[KeyPath, int | None]] = []  # open arrays with the next index, open inline tables
        while True:
            self._skip(_BLANK)
            if self._next() in ("[", "{"):
                around.append((path, 0 if self._next() == "[" else None))
                self.pos += 1
            else:
                self._skip(_SCALAR)
            while around:
                self._skip(_BETWEEN)
                if self._next() not in ("]", "}"):
                    break
                self.pos += 1
                around.pop()
            if not around:
                return
            outer, index = around[-1]
            if index is None:
                path = self._assignment(outer)
            else:
                around[-1] = (outer, index + 1)
                path = (*outer, index)
                self._record(outer, (index,), self.pos)

    def _assignment(self, table: KeyPath) -> KeyPath:
        """Reads `a.b =` and returns the path of the value."""
        start = self.pos
        key = self._key()
        if self._next() != "=":
            raise _Lost
        self.pos += 1
        self._record(table, key, start)
        return table + key

    def _key(self) -> KeyPath:
        parts = [self._key_part()]
        while self._next() == ".":
            self.pos += 1
            parts.append(self._key_part())
        return tuple(parts)

    def _key_part(self) -> str:
        if not (found := _KEY.match(self.text, self.pos)):
            raise _Lost
        self.pos = found.end()
        word = found[1]
        if word[0] == '"' and "\\" in word:
            return str(tomllib.loads(f"key = {word}")["key"])
        return word[1:-1] if word[0] in "\"'" else word

    def _record(self, table: KeyPath, key: KeyPath, start: int) -> None:
        line = bisect_right(self.newlines, start - 1) + 1
        if len(table) + len(key) <= _DEEPEST:
            self.written.setdefault(table + key, line)
        for end in range(1, min(len(key), _DEEPEST - len(table) + 1)):
            self.implied.setdefault(table + key[:end], line)

    def _next(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def _skip(self, what: re.Pattern[str]) -> None:
        found = what.match(self.text, self.pos)
        if not found:
            raise _Lost
        self.pos = found.end()


class Document(NamedTuple):
    """The content of a TOML file, with the lines of its keys."""

    label: str  # the file's name in messages
    data: dict[str, Any]
    lines: Lines
    raw: bytes


def read_toml(file: Path, draft: bytes | None = None) -> Document:
    """Reads `file`, or instead of it `draft`, the bytes that `file` is about to hold. Raises SpecError."""
    label = from_here(file)
    raw = _read_bytes(file, label) if draft is None else draft
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        raise SpecError(problems=f"{label}:{line}: {what}") from None
    try:
        return Document(label, tomllib.loads(text), index_lines(text), raw)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(problems=f"{label}{_syntax(str(error), text)}") from None
    except RecursionError:
        raise SpecError(problems=f"{label}: arrays or tables are nested too deep to be read") from None
    except ValueError:  # Python refuses an integer of thousands of digits
        raise SpecError(problems=f"{label}: a number is too long to be read") from None


def _read_bytes(file: Path, label: str) -> bytes:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise SpecError(problems=f"{label} is a folder; name the artifacts.toml inside it.")
        if not stat.S_ISREG(mode):
            raise SpecError(problems=f"{label} is not a regular file.")
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(problems=f"{label} does not exist.", hint="`builder init` makes one.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(problems=f"{label} cannot be read: {reason}.") from None
    if len(raw) > MOST_BYTES:
        raise SpecError(problems=f"{label} is larger than 1 MiB, so it is not a declaration.")
    return raw


def _syntax(error: str, text: str) -> str:
    """`:line:col: what is wrong`, the line and a caret below the column."""
    what, line, column = error, len(text.rstrip().split("\n")), 0
    if match := re.fullmatch(_AT, error):
        what = match[1]
        if match[2]:
            line, column = int(match[2]), int(match[3])
    source = text.split("\n")[line - 1]
    column = column or len(source.rstrip()) + 1
    first = max(0, column - 1 - _WIDEST // 2)
    part = "".join(c if c.isprintable() else " " for c in source[first : first + _WIDEST]).rstrip()
    return f":{line}:{column}: {_plain(what)}\n  {part}\n  {' ' * (column - 1 - first)}^"


def _plain(what: str) -> str:
    """The message of tomllib, without Python's tuples."""
    if match := re.fullmatch(r"Cannot declare \((.*)\) twice", what):
        keys = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", match[1])]
        return f"[{dotted(*keys)}] is declared twice; keep one"
    if what == "Cannot overwrite a value":
        return "this key or table has been given before; keep one"
    return f"not TOML: {what[:1].lower()}{what[1:]}"
