"""Events of a run, and how they are shown. Library code emits events; only this module and commands print.

`showing` chooses: one live display on a terminal, plain lines elsewhere, or what BUILDER_PROGRESS says
(live, plain, json, silent), which `doit --progress` sets. Everything goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Literal, TextIO

from builder.sizes import size_text

VARIABLE = "BUILDER_PROGRESS"
Mode = Literal["live", "plain", "json", "silent"]
MODES: Mapping[str, Mode] = {"live": "live", "plain": "plain", "json": "json", "silent": "silent"}

_TURN = Lock()
_LINE = Lock()


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


@dataclass(frozen=True)
class TargetDone:
    """A target is complete and can be loaded from `path`."""

    target: str
    path: str
    nbytes: int
    bits_per_weight: float
    made: int
    reused: int
    seconds: float


@dataclass(frozen=True)
class Scored:
    """`done` of `total` questions have been put to a target (layers of it, where it is scored by layer)."""

    target: str
    done: int
    total: int


@dataclass(frozen=True)
class Failed:
    """A task ended with an error: the error's name (docs/errors.md) and its text. Only seen as JSON."""

    task: str
    error: str
    message: str


Event = Note | Hashing | Scored | PassStarted | BlockDone | PassDone | TargetDone | Failed
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drops every event."""


def mode() -> Mode:
    """How events are shown in this process."""
    asked = MODES.get(os.environ.get(VARIABLE, ""))
    if asked:
        return asked
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return "live" if is_terminal and not os.environ.get("CI") else "plain"


@contextmanager
def showing() -> Iterator[Emit]:
    """What shows the events of one task; a live display is gone afterwards, whatever happens."""
    match mode():
        case "silent":
            yield silent
        case "json":
            yield JsonLines()
        case "live" if (turn := _take_turn()) is not None:
            from builder.live import Live

            live = Live()
            try:
                yield live
            finally:
                live.stop()
                turn()
        case _:
            yield Plain()


def _take_turn() -> Callable[[], None] | None:
    """One live display at a time: not in worker processes, and not beside another thread's."""
    import multiprocessing

    if multiprocessing.parent_process() is not None or not _TURN.acquire(blocking=False):
        return None
    return _TURN.release


def tell_error(text: str) -> None:
    """An error, on stderr in every mode."""
    print(f"ERROR: {text}", file=sys.stderr)


class JsonLines:
    """One JSON object a line for each event: `event` is its name, `time` seconds since the epoch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: Event) -> None:
        data = {"event": type(event).__name__, "time": round(time.time(), 3), **asdict(event)}
        _write(self._stream, json.dumps(data))


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
            case Scored(target, done, total):
                if self._due():
                    self._line(f"{target}: {done} of {total} measured")
            case PassStarted():
                self._blocks, self._done = event.blocks, 0
                self._line(
                    f"{event.model}: {', '.join(event.targets)}: {event.blocks} blocks to make, "
                    f"{event.reused} reused, {size_text(event.nbytes)} to write"
                )
            case BlockDone():
                self._done += event.made
                if self._due():
                    self._line(f"{event.model}: {self._done} of {self._blocks} blocks")
            case _:
                pass

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every:
            return False
        self._last = now
        return True

    def _line(self, text: str) -> None:
        _write(self._stream, text)


def _write(stream: TextIO, text: str) -> None:
    """A whole line at once: events come from several threads."""
    with _LINE:
        stream.write(f"{text}\n")
        stream.flush()
