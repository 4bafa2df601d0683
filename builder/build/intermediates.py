"""Intermediates exist only while something needs them: the tool deletes what it made for others.

An intermediate goes as soon as every declared target that is made from it is built at its current key. One
that a person asked for by name is pinned, and stays until `doit clean:<variant>`. Its records stay always, so
a pruned target is not out of date: it comes back when something that is really missing needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from builder.console.events import Emit, Note
from builder.console.words import size_text
from builder.keys import Key
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.state import reads_source, target_state
from builder.store import pins, views
from builder.store.care import drop


def prunable(
    plans: Iterable[TargetPlan | Unresolved], built: frozenset[str], pinned: frozenset[str]
) -> list[TargetPlan]:
    """The intermediates that nobody needs on disk any more. Pure.

    A target that cannot be planned now (its calibration text is not there) still needs what it is made from.
    """
    everything = list(plans)
    waiting = {source for plan in everything if plan.name not in built for source in _sources(plan)}
    return [
        plan
        for plan in everything
        if isinstance(plan, TargetPlan)
        and plan.target.variant.intermediate
        and plan.name not in pinned
        and plan.name not in waiting
    ]


def _sources(plan: TargetPlan | Unresolved) -> list[str]:
    """The targets that a learned target is made from."""
    variant = plan.target.variant
    return [f"{plan.target.model.name}_{name}" for name in variant.made_from if variant.learned]


def prune_intermediates(project: Project, emit: Emit, selected: Collection[str] = ()) -> None:
    """Delete the bytes of what is prunable and on disk, but for those that a target of `selected` will read.

    Raises StoreError.
    """
    plans = project.plan.resolved()
    on_disk = [
        plan
        for plan in plans
        if plan.target.variant.intermediate and views.current_key(project.store.models / plan.name)
    ]
    if not on_disk:
        return
    built = frozenset(p.name for p in plans if p.needs and target_state(project.store, p).built)
    chosen = {p.name for p in prunable(project.plan.targets.values(), built, pins.pinned(project.store))}
    reading = [p for p in plans if p.name in selected and reads_source(project.store, p)]
    waiting = {name for plan in reading for name in plan.reads}
    keep = frozenset[Key]().union(*(keys_of(p) for p in plans if p.name in waiting))
    for plan in on_disk:
        if plan.name in chosen:
            shown = views.current_key(project.store.models / plan.name)
            keys = [key for key in (shown, plan.key) if key]
            freed = drop.drop(project.store, {plan.name: keys}, project.spec.file.parent, keep=keep)
            emit(Note(f"pruned {plan.name}: {size_text(freed.bytes)} freed"))
