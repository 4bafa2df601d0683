"""Searches the share of experts with which a target meets what its model requires in the fewest bytes."""

from __future__ import annotations

from builder.build.experts import measure_experts
from builder.build.sharing import fetch_records
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.errors import SourceChanged
from builder.plan.goals import share_key, with_allocation, with_share
from builder.plan.planning import facts_of, plan_alone, whole_facts
from builder.plan.shares import Share, TriedShare, explained, in_words
from builder.plan.types import TargetPlan, Unresolved
from builder.project.measurements import keep
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.release.smallest import NoSizePasses, search_size
from builder.sources.facts import Unknown
from builder.spec.types import Target
from builder.store.care import drop
from builder.store.locks import acquire


def search_share(project: Project, target: Target, emit: Emit) -> Share:
    """What was chosen. Measures nothing where it is in the store. Raises BuildError, NoSizePasses."""
    sources, wanted = project.planned_from(), target.variant.experts
    facts, questions = whole_facts(target, sources), sources.questions[target.model.name]
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    if isinstance(questions, Unknown):
        raise questions.error or SourceChanged(source=f"model:{target.name}", path=questions.reason)
    assert facts.text is not None
    assert wanted is not None
    key = share_key(target, facts.base, facts.adapter, facts.text, sources.toolchain, questions)
    fetch_records(project, [key], emit)
    with acquire(project.store, [key], waiting(target.name, emit), "share-"):
        if (known := project.share(key)) is not None:
            _smallest(project, with_share(target, known.share), emit)  # pulls what it was chosen by
            return known
        found = _searched(project, target, wanted.choices, emit)
        keep(project.store, key, "share", found.to_text(), target.name)
    project.forget_plan()
    return found


def _searched(project: Project, target: Target, choices: tuple[float, ...], emit: Emit) -> Share:
    tried: list[TriedShare] = []
    best: TargetPlan | None = None
    chosen, failed = 0.0, None
    _check(project, target, choices, emit)
    for share in choices:
        one = with_share(target, share)
        emit(Note(f"{target.name}: the smallest size with {in_words(share)}"))
        try:
            plan = _smallest(project, one, emit)
        except NoSizePasses as error:
            tried.append(TriedShare(share, 0.0, 0, "no size passes"))
            failed = error
            continue
        tried.append(TriedShare(share, plan.bits_per_weight, plan.size))
        if best is None or plan.size < best.size:
            best, plan, chosen = plan, best or plan, share
        if plan is not best:
            _drop(project, target, plan, best)
    if best is None:
        assert failed is not None
        raise failed
    found = Share(chosen, tuple(tried))
    for line in explained(found):
        emit(Note(f"{target.name}: {line}"))
    return found


def _check(project: Project, target: Target, choices: tuple[float, ...], emit: Emit) -> None:
    """Refuses a share that the router cannot have, before a size is searched. Raises PlanError."""
    for share in choices:
        if share < 1:
            measure_experts(project, with_share(target, share), emit)


def _smallest(project: Project, target: Target, emit: Emit) -> TargetPlan:
    """The smallest plan of one share that passes. Raises NoSizePasses."""
    if target.variant.experts is not None:
        measure_experts(project, target, emit)
    allocation = search_size(project, target, emit)
    sources = project.planned_from()
    facts = facts_of(target, sources)
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    return plan_alone(with_allocation(target, allocation), facts, sources.toolchain)


def _drop(project: Project, target: Target, loser: TargetPlan, best: TargetPlan) -> None:
    """Frees the disk of a share that lost. Records stay."""
    folder = project.spec.file.parent
    drop.drop(project.store, {f"{target.name}.search": [loser.key]}, folder, keep=keys_of(best))
