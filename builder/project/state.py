"""Is a target up to date? One rule, asked by the build, by doit, by status and by plan.

A target is built when the manifest of its current key is in the store, all its blobs are there and its
view shows it. doit's database is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from builder.keys import Key
from builder.plan.changes import changes, summary
from builder.plan.types import Action, TargetPlan, Unresolved
from builder.store import blobs, records, views
from builder.store.holdings import holds, usable_record, whole_manifest
from builder.store.layout import Store
from builder.store.types import Manifest

Kind = Literal["built", "unlinked", "pruned", "stale", "missing", "unplanned"]


@dataclass(frozen=True)
class TargetState:
    """`reason` says in one clause why the target is in this state.

    built: nothing to do. unlinked: all bytes are there, the view is not. pruned: its bytes were dropped,
    its records stay. stale: the view shows another key. missing: never built at this key. unplanned: a
    source must be fingerprinted first.
    """

    name: str
    kind: Kind
    reason: str

    @property
    def built(self) -> bool:
        return self.kind == "built"


def target_state(store: Store, plan: TargetPlan | Unresolved) -> TargetState:
    """What the store holds of a target, at its current key."""
    if isinstance(plan, Unresolved):
        return TargetState(plan.name, "unplanned", plan.reason)
    manifest = records.read_manifest(store, plan.key)
    view = store.models / plan.name
    if manifest is not None and holds(store, manifest):
        if views.is_current(store, view, manifest):
            return TargetState(plan.name, "built", "its manifest, blobs and view are in the store")
        return TargetState(plan.name, "unlinked", f"its view {view.name} is missing or shows something else")
    shown = views.current_key(view)
    if shown not in (None, plan.key):
        return TargetState(plan.name, "stale", _changed(plan, records.read_manifest(store, Key(str(shown)))))
    if manifest is None:
        return TargetState(plan.name, "missing", "it has never been built with these inputs and settings")
    if shown is None:
        return TargetState(plan.name, "pruned", "its bytes were dropped; its records stay")
    lost = sum(not blobs.has(store, entry.blob) for entry in manifest.files)
    return TargetState(plan.name, "missing", f"{lost} of its {len(manifest.files)} blobs are gone")


def reads_source(store: Store, plan: TargetPlan) -> bool:
    """Whether making this target reads another one that must be on disk: its learned step must run."""
    made = (plan.learned, plan.key)
    return plan.learned is not None and all(whole_manifest(store, key) is None for key in made if key)


def missing_actions(store: Store, plan: TargetPlan) -> tuple[Action, ...]:
    """The actions of a target that have no usable record: what a build would run."""
    return tuple(action for action in plan.actions if usable_record(store, action.key) is None)


def _changed(plan: TargetPlan, old: Manifest | None) -> str:
    """Which inputs or settings differ from what the view shows, in one clause."""
    if old is None:
        return "its view shows a build that the store does not know"
    return summary(changes(plan, old))
