"""Events as lines: plain text for logs, or JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from threading import Lock
from typing import TextIO

from builder.console.events import (
    BlockDone,
    Event,
    Hashing,
    Learning,
    Note,
    PassStarted,
    Scored,
    Sending,
    Spread,
    Trained,
    Transferred,
    Working,
    Writing,
)
from builder.console.words import count, said_loss, size_text

_LINE = Lock()


class JsonLines:
    """Writes each event as one line of JSON. `event` is its name, `time` is in seconds since 1970."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __call__(self, event: Event) -> None:
        data = {"event": type(event).__name__, "time": round(time.time(), 3), **asdict(event)}
        _write(self._stream, json.dumps(data))


class Plain:
    """Writes plain lines: each Note, each start of a pass, and progress at most once in `every` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._last = time.monotonic()
        self._blocks = self._done = 0
        self._jobs = ""
        self._doing: dict[str, str] = {}  # what each worker does
        self._part, self._since = ("", 0), 0.0  # of what has a time left, with its total
        self._first = self._latest = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Note(text):
                self._line(text)
            case Hashing(what, done, total):
                if done < total and self._due():
                    self._line(f"{what}: hashed {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            case Transferred(remote, way, done, total):
                if done < total and self._due():
                    self._line(f"{way} {remote}: {size_text(done)} of {size_text(total)}")
            case Sending(where, done, total):
                if done < total and self._due():
                    self._line(f"{where}: sent {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            case Writing(what, done, total):
                if done < total and self._due():
                    self._line(f"{what}: wrote {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            case Scored(target, done, total, unit):
                left = self._left(target, done, total)
                if self._due():
                    of = (
                        f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"
                        if unit == "bytes"
                        else f"{done} of {total}"
                    )
                    self._line(f"{target}: {of} measured{left}")
            case Learning(target, part, done, total, loss):
                if self._due():
                    left = self._left(target + part, done, total)
                    self._line(f"{target}: {part}: {done} of {total}{said_loss(loss)}{left}")
            case Trained(adapter, done, total, loss, speed):
                if self._due():
                    left = self._left(adapter, done, total)
                    told = f"{said_loss(loss)}, {speed:,.0f} tokens/s{left}"
                    self._line(f"{adapter}: {done} of {total} steps{told}")
            case PassStarted():
                self._blocks, self._done = event.blocks, 0
                self._line(
                    f"{event.model}: {', '.join(event.targets)}: {count(event.blocks, 'block')} to make, "
                    f"{event.reused} reused, {size_text(event.nbytes)} to write"
                )
            case BlockDone():
                self._done += event.made
                if self._due():
                    self._line(f"{event.model}: {self._done} of {self._blocks} blocks")
            case Spread(done, total):
                self._jobs = f"{done} of {count(total, 'job')}"
                if done < total:
                    self._tell_workers()
                else:
                    self._doing.clear()
            case Working(worker, job, done, total):
                self._doing[worker] = f"{worker}: {job} ({done} of {total})" if job else ""
                self._tell_workers()
            case _:
                pass

    def _tell_workers(self) -> None:
        if self._due():
            self._line("; ".join([self._jobs, *filter(None, self._doing.values())]))

    def _left(self, part: str, done: int, total: int) -> str:
        """The time that a part still takes, by the time of what has been shown of it.

        A part that begins again, as further questions of a target do, is another one.
        """
        now = time.monotonic()
        if (part, total) != self._part or done < self._latest:
            self._part, self._since, self._first = (part, total), now, done
        self._latest = done
        made = done - self._first
        if not made:
            return ""
        left = round((total - done) * (now - self._since) / made)
        return f", {left // 60}:{left % 60:02} left"

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every:
            return False
        self._last = now
        return True

    def _line(self, text: str) -> None:
        _write(self._stream, text)


def _write(stream: TextIO, text: str) -> None:
    """Writes a whole line at once, because events come from several threads."""
    with _LINE:
        stream.write(f"{text}\n")
        stream.flush()
