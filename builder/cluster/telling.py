"""What a worker tells while it works: events as plain data, a few each second, and whether to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from builder.cluster.jobs import Job
from builder.console.events import BlockDone, Event, Hashing, Learning, Note, Scored, Trained, Transferred

TOPIC = "modelkiln"
_EVERY_S = 0.25


class Stopped(Exception):
    """The one who asked does not want it any more."""


class Teller:
    """An `Emit` that sends events to whoever runs the cluster. Raises Stopped when the job was cancelled."""

    def __init__(self, job: Job, worker: Any, task: Any) -> None:
        self._job, self._worker, self._task = job, worker, task
        self.worker = str(getattr(worker, "name", "") or "worker")
        self._lock, self._told, self._blocks = Lock(), 0.0, 0
        self._publisher: Any = None

    def published_by(self, publisher: Any) -> None:
        self._publisher = publisher

    def __call__(self, event: Event) -> None:
        self._stop_if_cancelled()
        if isinstance(event, BlockDone):
            self._blocks += 1
        if self._publisher is not None and isinstance(event, BlockDone | Learning):
            self._publisher.poke()
        if isinstance(event, Note):
            self.send(note=event.text)
            return
        part = self._part(event)
        now = time.monotonic()
        if part is None or (now - self._told < _EVERY_S and part[1] < part[2]):
            return
        self._told = now
        self.send(doing=part[0], done=part[1], total=part[2])

    def _part(self, event: Event) -> tuple[str, int, int] | None:
        """What is done, in words, and how much of it."""
        match event:
            case BlockDone():
                return "", self._blocks, max(len(self._job.blocks), self._blocks)
            case Hashing(what, done, total):
                return f"hash {what}", done, total
            case Transferred(remote, way, done, total):
                return f"{way} {remote}", done, total
            case Scored(_, done, total, _):
                return "measure", done, total
            case Learning(_, part, done, total, _):
                return part, done, total
            case Trained(_, done, total, _, _):
                return "train", done, total
        return None

    def send(self, **said: Any) -> None:
        if self._worker is not None:
            with self._lock:
                self._worker.log_event(TOPIC, {"job": self._job.id, **said})

    def _stop_if_cancelled(self) -> None:
        if self._worker is None or not self._task:
            return
        state = self._worker.state.tasks.get(self._task)
        if state is None or state.state != "executing":
            raise Stopped


@contextmanager
def telling(job: Job) -> Iterator[Teller]:
    """The teller of a job that runs in a worker of dask, or alone in a test."""
    try:
        from distributed import get_worker

        worker = get_worker()
        task = worker.get_current_task()
    except (ImportError, ValueError):
        worker = task = None
    teller = Teller(job, worker, task)
    teller.send(doing="", done=0, total=max(len(job.blocks), 1))
    yield teller
