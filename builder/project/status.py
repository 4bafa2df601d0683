"""What there is of every target, as values: read from the store, rendered by `commands/status.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from builder.console.words import listed, suggestion
from builder.errors import BuildError
from builder.plan.changes import Change, Why, changes, explain
from builder.plan.plan import TargetPlan, Unresolved
from builder.plan.quantization import PlanError
from builder.project.project import Project, toolchain
from builder.project.state import Kind, TargetState, missing_actions, target_state
from builder.spec.types import Target
from builder.store import records, views
from builder.store.briefs import Brief
from builder.store.types import Manifest, Scalar


class UnknownTarget(BuildError):
    """there is no target "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows what artifacts.toml declares."


@dataclass(frozen=True)
class Status:
    """One target. Sizes in bytes; None where nothing is known yet.

    `blocks` of the target, `reused`: how many of them did not have to be made (built) or will not have
    to be (not built). `due`: a plain `doit` would build it. `survival` in dB. `score`: the first figure
    that the model requires, and `misses` the conditions that do not hold, when they were measured
    (builder.evaluate.standing fills both).
    """

    target: str
    state: Kind
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
        why = "new source" if plan.error is None else "source unusable"
        if isinstance(plan.error, PlanError):
            why = "cannot be made"
        return Status(name, state.kind, not intermediate, intermediate, why=why, reason=state.reason)
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
        why=in_three_words(state, _changes(project, plan), intermediate),
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


def in_three_words(state: TargetState, changed: tuple[Change, ...], intermediate: bool = False) -> str:
    """Why a target is not built, for a column of a table."""
    match state.kind:
        case "stale" if changed:
            return changed[0].text if len(changed) == 1 else f"{changed[0].text}, +{len(changed) - 1}"
        case "stale":
            return "unknown former build"
        case "unlinked":
            return "view missing"
        case "pruned":
            return "bytes dropped"
        case "missing" if "blobs are gone" in state.reason:
            return "blobs gone"
        case "missing":
            return "on demand" if intermediate else "never built"
    return state.kind


def why(project: Project, name: str) -> Why:
    """Why a target would be built again. Raises BuildError."""
    plan = project.plan.targets[name]
    state = target_state(project.store, plan)
    if isinstance(plan, Unresolved):
        return Why(plan.name, state.kind, state.reason, (), (), 0, 0, None)
    missing = missing_actions(project.store, plan)
    return explain(plan, state.kind, state.reason, former_of(project, plan), missing, _strict(project))


def former_of(project: Project, plan: TargetPlan) -> Manifest | None:
    """What the target's name was last: the build that its view shows, else the newest of that name."""
    shown = views.current_key(project.store.models / plan.name)
    manifest = records.read_manifest(project.store, shown) if shown else None
    if manifest is not None:
        return manifest
    same = [m for m in records.manifests(project.store) if m.kind == "target" and m.name == plan.name]
    return max(same, key=lambda m: m.created, default=None)


def find_targets(project: Project, names: Iterable[str]) -> tuple[str, ...]:
    """Names as typed (`phase8_5bit`, `model:phase8_5bit`, a model: all its targets) -> names of targets.

    Raises UnknownTarget.
    """
    declared = {target.name: target for target in project.spec.targets}
    found: dict[str, None] = {}
    for typed in names:
        name = typed.removeprefix("model:")
        if name in declared:
            found[name] = None
        elif name in project.spec.models:
            found.update(
                {
                    t.name: None
                    for t in declared.values()
                    if t.model.name == name and not t.variant.intermediate
                }
            )
        else:
            near = suggestion(name, [*declared, *project.spec.models]) if declared else "."
            raise UnknownTarget(name=name, near=near, possible=listed([*declared]))
    return tuple(found)


# -- quality: what evaluation has left in the store ----------------------------------------------------------


def survival_of(measures: Mapping[str, Scalar]) -> float | None:
    """How much of the fine-tune survives, in dB, as the build measured it."""
    value = measures.get("survival_db")
    return float(value) if isinstance(value, int | float) else None


def _changes(project: Project, plan: TargetPlan) -> tuple[Change, ...]:
    shown = views.current_key(project.store.models / plan.name)
    former = records.read_manifest(project.store, shown) if shown and shown != plan.key else None
    return changes(plan, former, _strict(project)) if former else ()


def _strict(project: Project) -> str:
    return toolchain() if project.spec.build.strict_toolchain else ""
