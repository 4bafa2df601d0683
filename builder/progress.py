"""Events of a run, and how they are shown. Library code emits events; only this module and commands print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Note:
    """Something worth a line: an import, a download, a pruned intermediate."""

    text: str


@dataclass(frozen=True)
class Hashing:
    """`done` of `total` bytes of a source have been hashed."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class PassStarted:
    """A pass over one model begins: how many blocks it must make, how many it reuses, bytes to write."""

    model: str
    targets: tuple[str, ...]
    blocks: int
    reused: int
    nbytes: int


@dataclass(frozen=True)
class BlockDone:
    """One block of `made` variants is in the store."""

    model: str
    block: str
    made: int
    nbytes: int


@dataclass(frozen=True)
class PassDone:
    model: str
    seconds: float


Event = Note | Hashing | PassStarted | BlockDone | PassDone
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drops every event."""


class Plain:
    """Plain lines: at most one every `every` seconds, and every Note."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._last = time.monotonic()
        self._blocks = self._done = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Note(text):
                self._line(text)
            case Hashing(what, done, total):
                if self._due():
                    self._line(f"{what}: hashed {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            case PassStarted():
                self._blocks, self._done = event.blocks, 0
                self._line(
                    f"{event.model}: {', '.join(event.targets)}: {event.blocks} blocks to make, "
                    f"{event.reused} reused, {event.nbytes / 1e6:.0f} MB to write"
                )
            case BlockDone():
                self._done += event.made
                if self._due():
                    self._line(f"{event.model}: {self._done} of {self._blocks} blocks")
            case PassDone():
                pass

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every:
            return False
        self._last = now
        return True

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
