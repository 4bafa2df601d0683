"""Intermediates exist only while something needs them: the tool deletes what it made for others.

An intermediate goes as soon as every declared target that is made from it is built at its current key. One
that a person asked for by name is pinned, and stays until `doit clean:<variant>`. Its records stay always, so
a pruned target is not out of date: it comes back when something that is really missing needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from builder.console.events import Emit, Note
from builder.console.words import size_text
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.state import target_state
from builder.store import pins, views
from builder.store.care import drop as prune


def prunable(plans: Iterable[TargetPlan], built: frozenset[str], pinned: frozenset[str]) -> list[TargetPlan]:
    """The intermediates that nobody needs on disk any more. Pure."""
    everything = list(plans)
    waiting = {plan.needs for plan in everything if plan.needs and plan.name not in built}
    return [
        plan
        for plan in everything
        if plan.target.variant.intermediate and plan.name not in pinned and plan.name not in waiting
    ]


def prune_intermediates(project: Project, emit: Emit) -> None:
    """Delete the bytes of what is prunable and on disk. Raises StoreError."""
    plans = project.plan.resolved()
    on_disk = [
        plan
        for plan in plans
        if plan.target.variant.intermediate and views.current_key(project.store.models / plan.name)
    ]
    if not on_disk:
        return
    built = frozenset(p.name for p in plans if p.needs and target_state(project.store, p).built)
    chosen = {plan.name for plan in prunable(plans, built, pins.pinned(project.store))}
    for plan in on_disk:
        if plan.name in chosen:
            shown = views.current_key(project.store.models / plan.name)
            keys = [key for key in (shown, plan.key) if key]
            freed = prune.drop(project.store, keys)
            emit(Note(f"pruned {plan.name}: {size_text(freed.bytes)} freed"))
