"""What there is of every target, as values: read from the store, rendered by `commands/status.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.console.states import State
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.project.state import missing_actions, target_state
from builder.spec.types import Target
from builder.store.briefs import Brief
from builder.store.types import Scalar


@dataclass(frozen=True)
class Status:
    """One target. Sizes in bytes; None where nothing is known yet.

    `blocks` of the target, `reused`: how many of them did not have to be made (built) or will not have
    to be (not built). `due`: a plain `doit` would build it. `survival` in dB. `score`: the first figure
    that the model requires, `misses` the conditions that do not hold where they were measured, `verdict`
    passes, misses or not measured, or empty: nothing is required. builder.evaluate.standing fills all three.
    """

    target: str
    state: State
    due: bool
    intermediate: bool
    size: int | None = None
    bits_per_weight: float | None = None
    blocks: int | None = None
    reused: int | None = None
    built: str | None = None
    why: str = ""
    reason: str = ""
    survival: float | None = None
    score: float | None = None
    misses: tuple[str, ...] = ()
    verdict: str = ""


def survey(project: Project) -> tuple[Status, ...]:
    """Every declared target, in the order of the file. Raises BuildError."""
    return tuple(status_of(project, target) for target in project.spec.targets)


def status_of(project: Project, target: Target) -> Status:
    """One target; a built one is answered without planning. Raises BuildError."""
    name, intermediate = target.name, target.variant.intermediate
    if project.is_built(name):
        brief = project.seen.brief(project.keys[name])
        if brief is not None and {"bits_per_weight", "blocks"} <= brief.measures.keys():
            return _built(project, name, intermediate, brief)
    plan = project.plan.targets[name]
    state = target_state(project.store, plan)
    if isinstance(plan, Unresolved):
        return Status(name, state.kind, not intermediate, intermediate, why=state.short, reason=state.reason)
    brief = project.seen.brief(plan.key)
    if brief is not None and state.built:
        return _built(project, name, intermediate, brief, plan)
    missing = missing_actions(project.store, plan)
    known = brief.measures if brief else {}
    bits = known.get("bits_per_weight") if plan.needs else plan.bits_per_weight
    return Status(
        target=name,
        state=state.kind,
        due=not intermediate,
        intermediate=intermediate,
        size=brief.size if brief else plan.whole_size,
        bits_per_weight=None if bits is None else float(bits),
        blocks=None if plan.needs else len(plan.actions),
        reused=None if plan.needs else len(plan.actions) - len(missing),
        built=brief.created if brief else None,
        why=state.short,
        reason=state.reason,
        survival=survival_of(known),
    )


def _built(
    project: Project, name: str, intermediate: bool, brief: Brief, plan: TargetPlan | None = None
) -> Status:
    """A built target; `plan` says what an older manifest does not."""
    bits = brief.measures.get("bits_per_weight", plan.bits_per_weight if plan else 0.0)
    blocks = brief.measures.get("blocks", len(plan.actions) if plan else 0)
    return Status(
        target=name,
        state="built",
        due=False,
        intermediate=intermediate,
        size=brief.size,
        bits_per_weight=float(bits),
        blocks=int(blocks) or None,  # a learned target is made whole
        reused=int(brief.measures.get("blocks_reused", 0)) if blocks else None,
        built=brief.created,
        reason="its manifest, blobs and view are in the store",
        survival=survival_of(brief.measures),
    )


def survival_of(measures: Mapping[str, Scalar]) -> float | None:
    """How much of the fine-tune survives, in dB, as the build measured it."""
    value = measures.get("survival_db")
    return float(value) if isinstance(value, int | float) else None
