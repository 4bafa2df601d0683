"""Events of a run. Library code emits events and never prints. `builder.console.display` shows the events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
class Sending:
    """`done` of `total` bytes have been published to `where`, or were there already."""

    where: str
    done: int
    total: int


@dataclass(frozen=True)
class Writing:
    """`done` of `total` bytes of one file are written."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class PassStarted:
    """A pass over one model begins.

    `blocks` and `reused` count blocks of all variants: those to make, and those that the store has already.
    `nbytes` are the bytes to write.
    """

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
    """A pass over one model has ended."""

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
    """A target has answered `done` of `total` questions.

    `unit`: "questions", or "bytes" of weights where a target is scored layer by layer.
    """

    target: str
    done: int
    total: int
    unit: str = "questions"


@dataclass(frozen=True)
class Learning:
    """A learned quantizer has done `done` of `total` steps of one part of its work.

    `loss` is the last loss that it said, or None.
    """

    target: str
    part: str
    done: int
    total: int
    loss: float | None


@dataclass(frozen=True)
class Trained:
    """An adapter has been trained for `done` of `total` steps. `speed` is in learned tokens a second."""

    adapter: str
    done: int
    total: int
    loss: float
    speed: float


@dataclass(frozen=True)
class Transferred:
    """`done` of `total` bytes have been pushed to a remote or pulled from it. `way` is push or pull."""

    remote: str
    way: str
    done: int
    total: int


@dataclass(frozen=True)
class Spread:
    """`done` of `total` jobs of a cluster have ended."""

    done: int
    total: int


@dataclass(frozen=True)
class Working:
    """A worker of a cluster has done `done` of `total` of one job. Without a `job`: it waits for one."""

    worker: str
    job: str
    done: int
    total: int


@dataclass(frozen=True)
class Failed:
    """A task ended with an error: the error's name (docs/errors.md) and its text. Only JSON lines show it."""

    task: str
    error: str
    message: str


Event = (
    Note
    | Hashing
    | Sending
    | Writing
    | Scored
    | Learning
    | Trained
    | PassStarted
    | BlockDone
    | PassDone
    | TargetDone
    | Transferred
    | Spread
    | Working
    | Failed
)
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drops every event."""
