"""Why a target would be built again: the plan compared with what the store holds of it."""

from __future__ import annotations

from dataclasses import replace

from builder.plan import experts, shares
from builder.plan.allocation import explained
from builder.plan.changes import Why, explain
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.project.state import missing_actions, target_state
from builder.store import records, views
from builder.store.types import Manifest


def why(project: Project, name: str) -> Why:
    """Why a target would be built again. Raises BuildError."""
    plan = project.plan.targets[name]
    state = target_state(project.store, plan)
    if isinstance(plan, Unresolved):
        return Why(plan.name, state.kind, state.reason, (), (), 0, 0, None)
    missing = missing_actions(project.store, plan)
    found = explain(plan, state.kind, state.reason, former_of(project, plan), missing)
    return replace(found, bits=(*_experts(project, plan), *_bits(project, plan)))


def _experts(project: Project, plan: TargetPlan) -> tuple[str, ...]:
    """Why a target keeps the experts that it keeps."""
    routing = project.routing(plan.base.pruned.measured) if plan.base.pruned else None
    chosen = project.share(plan.chosen[2]) if len(plan.chosen) > 2 else None
    searched = shares.explained(chosen) if chosen else ()
    return (*searched, *(experts.explained(plan.target, routing) if routing else ()))


def _bits(project: Project, plan: TargetPlan) -> tuple[str, ...]:
    """Why each weight has its bits, where the target asks for a size."""
    chosen = project.allocation(plan.chosen[0]) if plan.chosen else None
    return explained(chosen) if chosen else ()


def former_of(project: Project, plan: TargetPlan) -> Manifest | None:
    """What the target's name was last: the build that its view shows, else the newest of that name."""
    shown = views.current_key(project.store.models / plan.name)
    manifest = records.read_manifest(project.store, shown) if shown else None
    if manifest is not None:
        return manifest
    same = [m for m in records.manifests(project.store) if m.kind == "target" and m.name == plan.name]
    return max(same, key=lambda m: m.created, default=None)
