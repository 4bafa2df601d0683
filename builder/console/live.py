"""The live display: one line on stderr while something takes time. The line disappears at the end."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from builder.console.crew import Crew
from builder.console.events import (
    BlockDone,
    Event,
    Hashing,
    Learning,
    Note,
    PassDone,
    PassStarted,
    Scored,
    Sending,
    Spread,
    Trained,
    Transferred,
    Working,
    Writing,
)
from builder.console.words import said_loss


class Live:
    """Shows events. Several threads may call it at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._crew: Crew | None = None
        self._task = TaskID(0)
        self._what = ""
        self._started = 0.0
        self._blocks = self._done = self._bytes = self._total = 0

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._show(event)

    def stop(self) -> None:
        """Takes the display away, if there is a display."""
        with self._lock:
            self._stop()

    def _show(self, event: Event) -> None:
        match event:
            case Note(text):
                shown = self._progress or (self._crew.progress if self._crew else None)
                (shown.console if shown else self._console).print(text, markup=False)
            case Spread() | Working():
                if self._crew is None:
                    self._stop()
                    self._crew = Crew(self._console)
                if self._crew.show(event):
                    self._stop()
            case Hashing(what, done, total):
                self._follow(f"hash {what}", total)
                self._update(done, f"{_of(done, total)}{self._rate(done)}")
                if done >= total:
                    self._stop()
            case Transferred(remote, way, done, total):
                self._follow(f"{way} {remote}", total, longest=24)
                self._update(done, f"{_of(done, total)}{self._rate(done)}")
                if done >= total:
                    self._stop()
            case Sending(what, done, total) | Writing(what, done, total):
                verb = "send" if isinstance(event, Sending) else "write"
                self._follow(f"{verb} {what}", total, longest=30)
                self._update(done, f"{_of(done, total)}{self._rate(done)}")
                if done >= total:
                    self._stop()
            case Scored(target, done, total, unit):
                self._follow(target, total, longest=30)
                of = _of(done, total) if unit == "bytes" else f"{done}/{total}"
                self._update(done, f"{of} measured{self._left(done)}")
                if done >= total:
                    self._stop()
            case Learning(target, part, done, total, loss):
                self._follow(f"{target} {part}", total, longest=40)
                self._update(done, f"{done}/{total}{said_loss(loss)}{self._left(done)}")
            case Trained(adapter, done, total, loss, speed):
                self._follow(adapter, total, longest=30)
                self._update(
                    done, f"{done}/{total}{said_loss(loss)}  {speed:,.0f} tokens/s{self._left(done)}"
                )
                if done >= total:
                    self._stop()
            case PassStarted():
                self._follow(event.model, event.nbytes)
                self._blocks, self._done, self._bytes, self._total = event.blocks, 0, 0, event.nbytes
                self._update(0, f"0/{event.blocks} blocks")
            case BlockDone():
                self._done += event.made
                self._bytes += event.nbytes
                blocks = f"{self._done}/{self._blocks} blocks"
                self._update(
                    self._bytes, f"{blocks}  {_of(self._bytes, self._total)}{self._rate(self._bytes)}"
                )
            case PassDone():
                self._stop()
            case _:
                pass

    def _follow(self, what: str, total: int, longest: int = 12) -> None:
        """Starts a display of `what`, unless it is on the terminal already. `total` is its size or count."""
        if self._progress is not None and self._what == what:
            return
        self._stop()
        cut = Column(no_wrap=True, overflow="ellipsis")
        text = TextColumn("{task.fields[text]}", table_column=cut)
        columns = (TextColumn("{task.description}"), BarColumn(8), text)
        self._progress = Progress(*columns, console=self._console, transient=True, refresh_per_second=8)
        self._what, self._started, self._total = what, time.monotonic(), total
        self._task = self._progress.add_task(_cut(what, longest), total=max(total, 1), text="")
        self._progress.start()

    def _update(self, done: int, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done, text=text)

    def _rate(self, done: int) -> str:
        """Speed in GB/s, time left, and peak memory in GB."""
        seconds = time.monotonic() - self._started
        if seconds < 0.2 or not done:
            return ""
        return f"  {done / seconds / 1e9:.2f} GB/s{self._left(done)}  mem {_memory():.1f} GB"

    def _left(self, done: int) -> str:
        seconds = time.monotonic() - self._started
        if seconds < 0.2 or not done:
            return ""
        left = max(0, round((self._total - done) * seconds / done))
        return f"  ETA {left // 60}:{left % 60:02}"

    def _stop(self) -> None:
        for shown in (self._progress, self._crew):
            if shown is not None:
                shown.stop()
        self._progress = self._crew = None


def _of(done: int, total: int) -> str:
    if total >= 10e9:
        return f"{done / 1e9:.1f}/{total / 1e9:.1f} GB"
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} MB"


def _cut(what: str, longest: int) -> str:
    return what if len(what) <= longest else what[: longest - 1] + "…"


def _memory() -> float:
    """The peak memory of this process, in GB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
