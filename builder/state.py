"""Is a target up to date? One rule, asked by the build, by doit, by status and by plan.

A target is built when the manifest of its current key is in the store, all its blobs are there and its
view shows it. doit's database is never asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from builder.keys import Key
from builder.plan import Action, TargetPlan, Unresolved
from builder.record import Manifest, Record
from builder.store import blobs, records, views
from builder.store.layout import Store

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


def holds(store: Store, manifest: Manifest) -> bool:
    return all(blobs.has(store, entry.blob) for entry in manifest.files)


def usable_record(store: Store, key: Key) -> Record | None:
    """The record of an action whose blob is really there."""
    record = records.read(store, key)
    return record if record is not None and blobs.has(store, record.blob) else None


def missing_actions(store: Store, plan: TargetPlan) -> tuple[Action, ...]:
    """The actions of a target that have no usable record: what a build would run."""
    return tuple(action for action in plan.actions if usable_record(store, action.key) is None)


def inputs_of(plan: TargetPlan) -> Mapping[str, str]:
    """What a manifest records of a target's inputs, and `why` compares."""
    inputs = {"base": plan.target.model.base, "base_digest": str(plan.base.weights)}
    if plan.adapter is not None and plan.target.model.adapter is not None:
        inputs |= {"adapter": plan.target.model.adapter, "adapter_digest": str(plan.adapter.digest)}
    return inputs


def settings_of(plan: TargetPlan) -> Mapping[str, str | int | bool]:
    """What a manifest records of a target's settings, and `why` compares."""
    variant = plan.target.variant
    settings: dict[str, str | int | bool] = {"variant": variant.name, "dtype": plan.dtype or "as the base"}
    if variant.quantization is not None:
        how = variant.quantization
        settings |= {"bits": how.bits, "group_size": how.group_size, "mode": how.mode}
    if variant.recipe is not None:
        settings |= {"recipe": variant.recipe, "group_size": variant.group_size}
    for override in variant.overrides:
        how_text = "as it is"
        if (q := override.quantization) is not None:
            how_text = f"{q.bits} bits, group {q.group_size}, {q.mode}"
        settings[f"override {override.pattern}"] = how_text
    return settings


def _changed(plan: TargetPlan, old: Manifest | None) -> str:
    """Which inputs or settings differ from what the view shows, in one clause."""
    if old is None:
        return "its view shows a build that the store does not know"
    new = {**inputs_of(plan), **settings_of(plan)}
    before = {**old.inputs, **old.settings}
    changes = [
        f"{name.removesuffix('_digest')} changed"
        if name.endswith("_digest")
        else f"{name} {before.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in sorted({*new, *before})
        if new.get(name) != before.get(name)
    ]
    return ", ".join(changes) or "a file copied from the base changed"
