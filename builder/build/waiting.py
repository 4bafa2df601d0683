"""What a run says while it waits for another one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from builder.console.events import Emit, Note


def waiting(name: str, emit: Emit, first: Lock | None = None) -> Callable[[], None]:
    """What a run says when it waits for another one. It says so once, however many blocks it waits for.

    first: shared by the steps of a run that say it once together. Nobody else may hold or release it.
    """
    first = first or Lock()

    def say() -> None:
        if first.acquire(blocking=False):  # never released
            emit(Note(f"{name}: waiting for another run, which builds the same"))

    return say
