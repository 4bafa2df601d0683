"""What is wrong with a declaration: collected, sorted by line, raised once."""

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
