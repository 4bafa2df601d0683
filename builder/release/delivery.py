"""From "build this target" to a finished run: choose the pass, build, keep what was named, prune, report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from builder.build.allocation import choose_bits
from builder.build.blocks import Tally
from builder.build.calibrated import build_calibrated
from builder.build.exact import build_exact, lacks_source
from builder.build.experts import measure_experts
from builder.build.first_pass import first_pass
from builder.build.intermediates import prune_intermediates
from builder.build.learned import build_learned
from builder.build.one_pass import Built, build
from builder.build.prepare import prepare_sources, prepare_target
from builder.build.sharing import fetch, share
from builder.console.events import Emit, Note, TargetDone
from builder.console.words import listed, size_text
from builder.errors import BuildError, StoreFull
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.state import reads_source, target_state
from builder.release.scores import refresh
from builder.release.shares import search_share
from builder.release.smallest import search_size
from builder.store import pins, views
from builder.store.care import drop
from builder.store.layout import Store
from builder.store.locks import build_session


def deliver(
    project: Project, name: str, selected: Collection[str], named: Collection[str], emit: Emit
) -> list[Built]:
    """Build `name` and, in the same pass, every selected target of its model that is not built, and what a
    selected learned target reads.

    Targets asked for by name are kept until cleaned. What a remote has is pulled instead. Raises BuildError.
    """
    project.forget_plan()
    with _kept(project.store), first_pass(project, name, selected, emit) as made:
        results = _deliver(project, name, selected, named, emit, made)
    plans = [project.plan.targets[built.name] for built in results]
    share(project, [plan for plan in plans if isinstance(plan, TargetPlan)], "always", emit)
    return results


@contextmanager
def _kept(store: Store) -> Iterator[None]:
    """What one step of a run makes stays for the next, though no key of either holds it between them."""
    with ExitStack() as held:
        with suppress(StoreFull):  # a build says how much it needs
            held.enter_context(build_session(store, []))
        yield


def _deliver(
    project: Project,
    name: str,
    selected: Collection[str],
    named: Collection[str],
    emit: Emit,
    made: Tally | None,
) -> list[Built]:
    """made: what the first pass over the base made of these targets."""
    wanted = _resolved(project, name, emit)
    model = wanted.target.model.name
    if wanted.needs is not None:
        fetch(project, [wanted], emit)
        results = _sources_of(project, wanted, selected, named, emit)
        learned = build_learned(project, wanted, emit)
        _refresh(project, wanted)
        _tell([learned], emit)
        prune_intermediates(project, emit, selected)
        return [*results, learned]
    if wanted.gguf is not None and wanted.gguf.of is not None:
        fetch(project, [wanted], emit)
        lacks = lacks_source(project, wanted)
        results = _deliver(project, wanted.gguf.of, selected, named, emit, None) if lacks else []
        repacked = build_exact(project, wanted, emit)
        _refresh(project, wanted)
        _tell([repacked], emit)
        return [*results, repacked]
    if wanted.target.variant.rounds_for_text:
        fetch(project, [wanted], emit)
        rounded = build_calibrated(project, wanted, emit)
        _refresh(project, wanted)
        _tell([rounded], emit)
        return [rounded]
    others = [p for p in project.plan.resolved() if p.target.model.name == model and p.name != name]
    reading = [p for p in others if p.name in selected and reads_source(project.store, p)]
    read = {name for plan in reading for name in plan.reads}
    chosen = [wanted]
    for other in others:
        variant = other.target.variant
        in_a_pass = not variant.made_from and not variant.rounds_for_text
        asked = in_a_pass and (other.name in selected or other.name in read)
        if asked and not target_state(project.store, other).built:
            chosen.append(other)
    declared = [target.name for target in project.spec.targets]
    chosen.sort(key=lambda plan: declared.index(plan.name))  # whichever of them doit came to first
    for target in chosen:
        if target.target.variant.intermediate and target.name in named:
            pins.pin(project.store, target.name)
    fetch(project, chosen, emit)
    results = build(project, chosen, emit, made)
    for target in chosen:
        _refresh(project, target)
    _tell(results, emit)
    return results


def _sources_of(
    project: Project, plan: TargetPlan, selected: Collection[str], named: Collection[str], emit: Emit
) -> list[Built]:
    """Build what a learned target reads, if it is not there."""
    made: list[Built] = []
    if reads_source(project.store, plan):
        for name in plan.reads:
            if not target_state(project.store, project.plan.targets[name]).built:
                made += _deliver(project, name, selected, named, emit, None)
    return made


def _refresh(project: Project, target: TargetPlan) -> None:
    """A target that was measured before and is back has its scores on its card again."""
    with suppress(BuildError):  # questions that are not there are no reason to fail a build
        if target.target.model.suites:
            refresh(project, target)


def _tell(results: Sequence[Built], emit: Emit) -> None:
    for built in results:
        emit(
            TargetDone(
                built.name,
                str(built.path),
                built.size,
                built.bits_per_weight,
                built.made,
                built.reused,
                round(built.seconds, 3),
            )
        )


def _resolved(project: Project, name: str, emit: Emit) -> TargetPlan:
    """The plan of a target; prepares its sources if nobody has (Python, `doit --continue`)."""
    plan = project.plan.targets[name]
    if isinstance(plan, TargetPlan):
        return plan
    for source in plan.target.variant.made_from if plan.error is None else ():
        _resolved(project, f"{plan.target.model.name}_{source}", emit)
        project.forget_plan()
    wanted = plan.target.variant.experts
    if wanted is not None and plan.error is None:
        prepare_sources(project, plan.target, emit)
        if wanted.choices:
            search_share(project, plan.target, emit)
        else:
            measure_experts(project, plan.target, emit)
        project.forget_plan()
        plan = project.plan.targets[name]
        if isinstance(plan, TargetPlan):
            return plan
    if plan.target.variant.goal is not None and plan.error is None:
        prepare_sources(project, plan.target, emit)
        if plan.target.variant.goal.smallest:
            search_size(project, plan.target, emit)
        else:
            choose_bits(project, plan.target, emit)
    return prepare_target(project, plan.target, emit)


def clean(project: Project, names: Sequence[str], emit: Emit) -> None:
    """Drop views and bytes of targets, but for what others need, and say who that is. Records stay.

    Raises StoreError.
    """
    targets: dict[str, list[Key]] = {}
    for name in names:
        shown = views.current_key(project.store.models / name)
        plan = project.plan.targets[name]
        targets[name] = [key for key in (shown, plan.key if isinstance(plan, TargetPlan) else None) if key]
        pins.unpin(project.store, name)
    freed = drop.drop(project.store, targets, project.spec.file.parent)
    emit(Note(f"dropped {', '.join(names)}: {freed.blobs} blobs, {size_text(freed.bytes)} freed"))
    for name, keys in targets.items():
        if who := dict.fromkeys(holder for key in keys for holder in freed.held.get(key, ())):
            needs = "needs" if len(who) == 1 else "need"
            emit(Note(f"the bytes of {name} stay: {listed(list(who), 'and')} {needs} them"))
