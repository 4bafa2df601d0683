"""How long jobs take on 1 to 64 workers that share one store: a calculation from measured times. Pure.

A worker takes the next job, receives what it needs from the store, and computes. What it has made goes to the
store meanwhile. All transfers share the store's bandwidth evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

WORKERS = (1, 2, 4, 8, 16, 32, 64)
_GAIN = 1.1  # twice the workers must be faster by this, or the store is the limit


@dataclass(frozen=True)
class Task:
    """One job: seconds of computing, bytes that come from the store before, bytes that go there meanwhile."""

    seconds: float
    receive: float = 0.0
    send: float = 0.0


@dataclass
class _Running:
    receive: float
    seconds: float
    send: float

    @property
    def transfers(self) -> bool:
        return self.receive > 0 or self.send > 0

    @property
    def is_done(self) -> bool:
        return self.receive <= 0 and self.seconds <= 0 and self.send <= 0

    def left(self, rate: float) -> float:
        """Seconds until the next thing of it ends, if nothing else changes."""
        if self.receive > 0:
            return self.receive / rate
        ends = [each for each in (self.seconds, self.send / rate) if each > 0]
        return min(ends)

    def advance(self, seconds: float, rate: float) -> None:
        if self.receive > 0:
            self.receive = _less(self.receive, seconds * rate)
            return
        self.seconds = _less(self.seconds, seconds)
        self.send = _less(self.send, seconds * rate)


def _less(value: float, by: float) -> float:
    left = value - by
    return left if left > 1e-9 * max(value, 1.0) else 0.0


def simulate(tasks: Sequence[Task], workers: int, bandwidth: float, overhead: float = 0.0) -> float:
    """Seconds until all tasks are done and stored. `bandwidth` of the store in bytes a second."""
    waiting = [replace(task, seconds=task.seconds + overhead) for task in reversed(tasks)]
    running: list[_Running] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < workers:
            task = waiting.pop()
            running.append(_Running(task.receive, task.seconds, task.send))
        rate = bandwidth / max(1, sum(each.transfers for each in running))
        step = min(each.left(rate) for each in running)
        for each in running:
            each.advance(step, rate)
        now += step
        running = [each for each in running if not each.is_done]
    return now


def limit(tasks: Sequence[Task], bandwidth: float, overhead: float = 0.0) -> int | None:
    """The first number of workers that twice as many would hardly beat because the store is busy all the
    time. None where more workers help up to the end, or where there are too few jobs for them.
    """
    for few, many in pairwise(WORKERS):
        if len(tasks) < many:
            return None
        moved = sum(task.receive + task.send for task in tasks) / bandwidth
        slow, fast = (simulate(tasks, each, bandwidth, overhead) for each in (few, many))
        if slow < _GAIN * fast and moved > 0.8 * fast:
            return few
    return None


@dataclass(frozen=True)
class Shape:
    """A model: bytes of its base, bytes of each variant, layers, seconds to measure one variant."""

    name: str
    base: float
    variants: tuple[float, ...]
    layers: int
    measure: float

    def blocks(self, seconds_per_gb: float, parts: int) -> list[Task]:
        """The pass over the base in runs of blocks, which send all variants."""
        parts = min(parts, self.layers)
        return [Task(self.base / 1e9 * seconds_per_gb / parts, send=sum(self.variants) / parts)] * parts

    def suites(self, suites: int) -> list[Task]:
        """Each variant measured in as many jobs. A worker gets the variant from the store first."""
        return [Task(self.measure, receive=size) for size in self.variants for _ in range(suites)]


def shape(name: str, parameters: float, layers: int, measure: float) -> Shape:
    """A model in bfloat16, with variants of 4, 5, 6 and 8 bits in groups of 64."""
    return Shape(
        name, 2 * parameters, tuple(parameters * (b + 0.5) / 8 for b in (4, 5, 6, 8)), layers, measure
    )
