"""What is to be made and measured, cut into jobs for several machines. Pure.

A job is plain data, and its name follows from what must come out of it. So the same work has the same name,
whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from builder.console.words import count
from builder.keys import Key, make_key
from builder.plan.types import Action, TargetPlan

Kind = Literal["blocks", "target", "reference", "suites"]
PARTS = 2  # runs of blocks for each worker: the faster one takes more


@dataclass(frozen=True)
class Job:
    """A run of blocks of one pass, a whole target, the log-probs of a reference, or suites of a target.

    `keys`: what must come out, where that is known before. `after`: the ids of jobs whose results it reads.
    """

    kind: Kind
    what: str
    targets: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The same for the same work. What is unknown before is told apart by the names of targets."""
        named = self.keys or self.targets
        return f"{self.kind}-{make_key('job/1', self.kind, sorted(named), sorted(self.suites))[:32]}"

    def as_data(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)


def job_from(data: Mapping[str, Any]) -> Job:
    """The job that `as_data` described."""
    parts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
    }
    return Job(**parts)


def runs(sizes: Sequence[tuple[str, int]], parts: int) -> list[tuple[str, ...]]:
    """Blocks that follow each other, in at most `parts` runs of about the same number of bytes."""
    parts = max(1, min(parts, len(sizes)))
    total, done = sum(size for _, size in sizes), 0
    found: list[list[str]] = [[]]
    for at, (name, size) in enumerate(sizes):
        left = len(sizes) - at  # each run that is still to come needs a block
        full = done + size / 2 > total * len(found) / parts or left <= parts - len(found)
        if found[-1] and full and len(found) < parts:
            found.append([])
        found[-1].append(name)
        done += size
    return [tuple(run) for run in found if run]


def block_jobs(
    plans: Sequence[TargetPlan], missing: Mapping[str, Sequence[Action]], workers: int
) -> list[Job]:
    """The missing blocks of targets of one model, in runs. Several targets of a block are made together."""
    by_block: dict[str, list[tuple[str, Action]]] = {}
    for plan in plans:
        for action in missing[plan.name]:
            by_block.setdefault(action.block, []).append((plan.name, action))
    if not by_block:
        return []
    order = [action.block for action in plans[0].actions if action.block in by_block]
    sizes = [(block, sum({a.key: a.size for _, a in by_block[block]}.values())) for block in order]
    model = plans[0].target.model.name
    found = []
    for run in runs(sizes, PARTS * workers):
        made = [each for block in run for each in by_block[block]]
        names = {name for name, _ in made}
        found.append(
            Job(
                "blocks",
                f"{model} {_span(run)}",
                tuple(plan.name for plan in plans if plan.name in names),
                blocks=run,
                keys=tuple(dict.fromkeys(action.key for _, action in made)),
            )
        )
    return found


def target_job(name: str, keys: Sequence[Key] = (), after: Sequence[Job] = ()) -> Job:
    """A target that is made as a whole: calibrated, learned, or one whose bits are still to be chosen."""
    return Job("target", name, (name,), keys=tuple(keys), after=tuple(job.id for job in after))


def reference_job(name: str, suite: str, key: Key) -> Job:
    """The log-probs of the unquantized model, which all of its targets are compared with."""
    return Job("reference", f"{name}: the unquantized model for {suite}", (name,), (), (suite,), (key,))


def suites_job(name: str, results: Mapping[str, Key], after: Sequence[Job] = ()) -> Job:
    """Suites that are measured together. `results`: suite -> the key of its result."""
    needed = tuple(job.id for job in after)
    what = f"{name}: {', '.join(results)}"
    return Job("suites", what, (name,), (), tuple(results), tuple(results.values()), needed)


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """Each piece of work once. Two targets of different names may be the same bytes."""
    found: dict[str, Job] = {}
    for job in jobs:
        former = found.get(job.id)
        found[job.id] = replace(former, targets=(*former.targets, *job.targets)) if former else job
    return list(found.values())


def _span(blocks: Sequence[str]) -> str:
    """The blocks of a run in a few words."""
    if len(blocks) == 1:
        return blocks[0]
    return f"{count(len(blocks), 'block')} from {blocks[0]}"
