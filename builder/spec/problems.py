"""The problems of a declaration: collected, sorted by line, and raised as one error."""

from __future__ import annotations

from typing import NamedTuple

from builder.console.words import dotted
from builder.errors import SpecError
from builder.spec.toml import KeyPath, Lines


class Place(NamedTuple):
    """A value in the file: the path that leads there, and how a message names the table around it."""

    path: KeyPath
    title: str

    def key(self, *keys: str | int) -> Place:
        """The place of a key of this table, with the title of the table."""
        return Place((*self.path, *keys), self.title)


def table_place(*keys: str) -> Place:
    """The place of a table: `table_place("base", "a")` is the place of [base.a]."""
    return Place(keys, f"[{dotted(*keys)}]")


class Problems:
    """Collects problems. `raise_any` raises one SpecError that lists them all."""

    def __init__(self, label: str, lines: Lines) -> None:
        self._label = label
        self._lines = lines
        self._found: list[tuple[int, str]] = []

    def add(self, place: Place, what: str) -> None:
        """Adds a problem. The message is the title of `place`, then `what`."""
        self._found.append((self.line(place), f"{place.title} {what}".lstrip()))

    def line(self, place: Place) -> int:
        """The line of `place` in the file, from 1."""
        return self._lines.at(place.path)

    def raise_any(self) -> None:
        """Raises SpecError when anything was added."""
        if not self._found:
            return
        found = sorted(dict.fromkeys(self._found), key=lambda problem: problem[0])
        raise SpecError(problems="\n".join(f"{self._label}:{line}: {what}" for line, what in found))
