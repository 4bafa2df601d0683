"""On which line of a TOML text a table, a key or an element of an array stands. tomllib does not say.

Reads text that tomllib has accepted, so it needs to know only where strings, keys and brackets begin and
end. Losing its way would cost exact line numbers and nothing else: `Lines.at` falls back to the table.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress

Path = tuple[str | int, ...]

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
_DEEPEST = 8  # nothing that is looked up lies deeper


class Lines:
    """Path -> line, from 1. A path is the keys that lead to a value, and the indices of arrays on the way."""

    def __init__(self, written: dict[Path, int], implied: dict[Path, int]) -> None:
        self._written = written
        self._implied = implied

    def at(self, path: Path) -> int:
        """The line of `path`, else of what is nearest around it, else 1."""
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
    with suppress(_Lost, tomllib.TOMLDecodeError):  # what has been found by then serves
        scan.document()
    return Lines(scan.written, scan.implied)


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.written: dict[Path, int] = {}  # a header or a key that says just this path
        self.implied: dict[Path, int] = {}  # a.b implies a

    def document(self) -> None:
        table: Path = ()
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

    def _value(self, path: Path) -> None:
        """Pass over one value. A loop, not a recursion: arrays may be nested as deep as tomllib reads."""
        around: list[tuple[Path, int | None]] = []  # open arrays with the next index, open inline tables
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

    def _assignment(self, table: Path) -> Path:
        """`a.b =`: the path of its value."""
        start = self.pos
        key = self._key()
        if self._next() != "=":
            raise _Lost
        self.pos += 1
        self._record(table, key, start)
        return table + key

    def _key(self) -> Path:
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

    def _record(self, table: Path, key: Path, start: int) -> None:
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
