"""Is a target up to date? One rule, asked by the build, by doit, by status and by plan.

A target is built when the manifest of its current key is in the store, all its blobs are there and its
view shows it. doit's database is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from builder.console.states import State
from builder.keys import Key
from builder.plan.changes import changes, summary
from builder.plan.quantization import PlanError
from builder.plan.types import Action, TargetPlan, Unresolved
from builder.store import blobs, records, views
from builder.store.holdings import holds, usable_record, whole_manifest
from builder.store.layout import Store
from builder.store.types import Manifest


@dataclass(frozen=True)
class TargetState:
    """`reason` says in one clause why the target is in this state, `short` in two or three words.

    built: nothing to do. not shown: all bytes are there, the view is not. not kept: an intermediate that a
    run makes where it needs it. not built: never built at this key, or bytes are gone. out of date: the view
    shows another key. not planned: a source must be read first, or cannot give what is declared.
    """

    name: str
    kind: State
    reason: str
    short: str = ""

    @property
    def built(self) -> bool:
        return self.kind == "built"


def target_state(store: Store, plan: TargetPlan | Unresolved) -> TargetState:
    """What the store holds of a target, at its current key."""
    if isinstance(plan, Unresolved):
        return TargetState(plan.name, "not planned", plan.reason, _unresolved(plan))
    manifest = records.read_manifest(store, plan.key)
    view = store.models / plan.name
    if manifest is not None and holds(store, manifest):
        if views.is_current(store, view, manifest):
            return TargetState(plan.name, "built", "its manifest, blobs and view are in the store")
        reason = f"its view {view.name} is missing or shows something else"
        return TargetState(plan.name, "not shown", reason, "view missing")
    shown = views.current_key(view)
    if shown not in (None, plan.key):
        return _outdated(plan, records.read_manifest(store, Key(str(shown))))
    intermediate = plan.target.variant.intermediate
    absent: State = "not kept" if intermediate else "not built"
    if manifest is None:
        reason = "it has never been built with these inputs and settings"
        return TargetState(plan.name, absent, reason, "on demand" if intermediate else "never built")
    if shown is None:
        return TargetState(plan.name, absent, "its bytes were dropped; its records stay", "bytes dropped")
    lost = sum(not blobs.has(store, entry.blob) for entry in manifest.files)
    return TargetState(
        plan.name, "not built", f"{lost} of its {len(manifest.files)} blobs are gone", "blobs gone"
    )


def reads_source(store: Store, plan: TargetPlan) -> bool:
    """Whether making this target reads another one that must be on disk: its learned step must run."""
    made = (plan.learned, plan.key)
    return plan.learned is not None and all(whole_manifest(store, key) is None for key in made if key)


def missing_actions(store: Store, plan: TargetPlan) -> tuple[Action, ...]:
    """The actions of a target that have no usable record: what a build would run."""
    return tuple(action for action in plan.actions if usable_record(store, action.key) is None)


def _outdated(plan: TargetPlan, old: Manifest | None) -> TargetState:
    """Which inputs or settings differ from what the view shows."""
    if old is None:
        reason = "its view shows a build that the store does not know"
        return TargetState(plan.name, "out of date", reason, "unknown former build")
    found = changes(plan, old)
    first = found[0].text if found else "block format changed"
    more = f", +{len(found) - 1}" if len(found) > 1 else ""
    return TargetState(plan.name, "out of date", summary(found), first + more)


def _unresolved(plan: Unresolved) -> str:
    """Why a target cannot be planned, in two words."""
    if isinstance(plan.error, PlanError):
        return "cannot be made"
    if plan.short:
        return plan.short
    return "new source" if plan.error is None else "source unusable"
