"""What a worker makes goes into a remote while the worker goes on. So a worker that dies has lost little."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Thread

from builder.build.sharing import send, send_keys
from builder.console.events import Emit
from builder.errors import BuildError
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.remotes import bundle_of
from builder.spec.sharing import Remote
from builder.store import records

_REST = 9  # A look lists the whole store. So looks take a tenth of the time at most


class Publisher:
    """Sends records and results that are new in the store since it began, in a thread of its own."""

    def __init__(self, project: Project, remote: Remote, emit: Emit) -> None:
        self._project, self._remote, self._emit = project, remote, emit
        self._sent = kept(project)
        self._changed = Condition()
        self._waiting, self._ended = False, False
        self._error: BuildError | None = None
        self._thread = Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """There is something new."""
        with self._changed:
            self._waiting = True
            self._changed.notify()

    def close(self) -> None:
        """Ends when everything is there. Raises RemoteError, StoreError."""
        with self._changed:
            self._ended = self._waiting = True
            self._changed.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        rest = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended, rest)
                self._changed.wait_for(lambda: self._waiting)
                self._waiting, last = False, self._ended
            try:
                began = time.monotonic()
                new = kept(self._project) - self._sent
                rest = _REST * (time.monotonic() - began)
                if new:
                    send_keys(self._project, self._remote, new, self._emit)
                self._sent |= new
            except BuildError as error:
                self._error = error
                return
            if last:
                return


@contextmanager
def publishing(project: Project, remote: Remote | None, emit: Emit) -> Iterator[Publisher | None]:
    """Publishes what is made inside, also where that ends with an error. Raises RemoteError, StoreError."""
    if remote is None:
        yield None
        return
    publisher = Publisher(project, remote, emit)
    try:
        yield publisher
    finally:
        publisher.close()


def publish_target(project: Project, remote: Remote | None, plan: TargetPlan, emit: Emit) -> None:
    """A whole target with its manifest. Raises RemoteError, StoreError."""
    bundle = bundle_of(project, plan)
    if remote is not None and bundle is not None:
        send(project, remote, [bundle], emit)


def kept(project: Project) -> set[Key]:
    """The keys of all records and results of a store."""
    results = {Key(file.stem) for file in project.store.evals.glob("*/*.json")}
    return {*records.record_keys(project.store), *results}
