"""`builder pull`: targets as remotes have them. A base that is not here need not be, where artifacts.lock
names keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from builder.build import card, lockfile
from builder.build.allocation import fetch_bits
from builder.build.blocks import Tally
from builder.build.experts import fetch_routing
from builder.build.one_pass import finish
from builder.build.prepare import prepare_adapter, prepare_base, prepare_calibration
from builder.build.sharing import Opened, fetch_manifests, look_at, offered, settle, take
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.console.words import count
from builder.errors import BuildError, SourceError
from builder.keys import Key, is_digest
from builder.plan.planning import facts_of
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.project.remotes import has, knows, measured_of, wanted_of
from builder.project.roots import register
from builder.project.state import missing_actions, target_state
from builder.sources import base as bases
from builder.sources.facts import Unknown
from builder.sources.trained import recipe_of
from builder.spec.sharing import Remote
from builder.spec.types import Base, GgufSource, HfSource
from builder.store import records, views
from builder.store.holdings import whole_manifest
from builder.store.locks import acquire, build_session

if TYPE_CHECKING:
    from builder.remote.offer import Wanted


class NotPlanned(SourceError):
    """{target} cannot be pulled, because nobody knows its key here: {what}."""

    hint = "`builder lock`, where it was built, writes its key into artifacts.lock. Or build it here."


BUILT, CAN = "built", "can be pulled"


@dataclass(frozen=True)
class PulledTarget:
    """One target. `nbytes` came, or would come, from `remote`. `state`: what the target is then."""

    target: str
    state: str
    nbytes: int = 0
    results: int = 0
    remote: str = ""


def pull_targets(
    project: Project, names: Sequence[str], remotes: Sequence[Remote], emit: Emit, *, dry_run: bool = False
) -> tuple[PulledTarget, ...]:
    """Pulls each target from the first remote that has it. Raises BuildError."""
    opened = [look_at(project, remote) for remote in remotes]
    rows = []
    for name in names:
        plan = _planned(project, name, emit)
        # What came stays until it is shown.
        with nullcontext() if dry_run else build_session(project.store, []):
            if isinstance(plan, TargetPlan):
                rows.append(_pull(project, plan, opened, emit, dry_run=dry_run))
            else:
                rows.append(_pull_locked(project, name, plan, opened, emit, dry_run=dry_run))
    if not dry_run:
        register(project)
    return tuple(rows)


def _planned(project: Project, name: str, emit: Emit) -> TargetPlan | SourceError:
    """The plan of a target, or why it has none. Reads sources, and neither downloads, imports nor trains."""
    plan = project.plan.targets[name]
    if isinstance(plan, TargetPlan):
        return plan
    model, variant = plan.target.model, plan.target.variant
    base, adapter = project.spec.bases[model.base], project.spec.adapters.get(model.adapter or "")
    try:
        if not _is_here(project, base) and (isinstance(base.source, HfSource) or _locked(project, name)):
            return NotPlanned(target=name, what=f"its base {base.name} is not on this machine")
        prepare_base(project, base, emit)
        if adapter is not None and adapter.train is not None:
            recipe = recipe_of(project.sources, adapter, adapter.train)
            fetch_manifests(project, [] if isinstance(recipe, Unknown) else [recipe.key], emit)
            if isinstance(recipe, Unknown) or whole_manifest(project.store, recipe.key) is None:
                return NotPlanned(target=name, what=f"its adapter {adapter.name} is not trained")
        if adapter is not None:
            prepare_adapter(project, adapter, emit)
        if variant.calibration is not None:
            prepare_calibration(project, variant, emit)
        if variant.experts is not None and not variant.experts.choices:
            fetch_routing(project, plan.target, emit)
        facts = facts_of(plan.target, project.planned_from())
        if variant.goal is not None and not variant.goal.smallest and not isinstance(facts, Unresolved):
            fetch_bits(project, plan.target, facts, emit)
    except SourceError as error:
        return error
    project.forget_plan()
    found = project.plan.targets[name]
    if isinstance(found, Unresolved):
        if found.error is not None:
            raise found.error
        return NotPlanned(target=name, what=found.reason)
    return found


def _is_here(project: Project, base: Base) -> bool:
    if isinstance(base.source, HfSource):
        return bases.locate(base) is not None
    return not isinstance(base.source, GgufSource) or project.sources.imported(base) is not None


def _locked(project: Project, name: str) -> Mapping[str, str]:
    """What artifacts.lock says of a target; nothing where there is no sound lock."""
    try:
        said = lockfile.read(project.spec.file.with_name(lockfile.NAME))["target"].get(name, {})
    except BuildError:
        return {}
    return said if is_digest(said.get("key", "")) else {}


def _pull(
    project: Project, plan: TargetPlan, opened: Sequence[Opened], emit: Emit, *, dry_run: bool
) -> PulledTarget:
    store, nbytes, sources = project.store, 0, []
    measured, _ = measured_of(project, plan)
    before = sum(knows(project, key) for key in measured)
    came = 0
    for found in opened:
        wanted = wanted_of(project, [plan])
        if dry_run:
            size, results, whole = _offer(project, plan, found, wanted)
            if size or results or whole:
                whole = whole or whole_manifest(store, plan.key) is not None
                state = CAN if whole else "not there as a whole"
                return PulledTarget(plan.name, state, size, results, found.remote.name)
            continue
        if size := take(project, found, wanted, emit, [plan]):
            nbytes += size
            sources.append(found.remote.name)
    came = sum(knows(project, key) for key in measured) - before
    if not dry_run and whole_manifest(store, plan.key) is not None:
        settle(project, plan)
        with build_session(store, [plan.key, *plan.keys]):
            finish(project, plan, Tally(), 0.0, emit)
        project.forget_plan()
    then = target_state(store, plan)
    said = BUILT if then.built else "not there"
    if not then.built and plan.needs is None and not missing_actions(store, plan):
        said = "all blocks are here, a build puts them together"
    if not then.built and (missing := missing_actions(store, plan)) and len(missing) < len(plan.actions):
        said = f"{count(len(missing), 'block')} not there"
    return PulledTarget(plan.name, said, nbytes, came, ", ".join(sources))


def _offer(project: Project, plan: TargetPlan, found: Opened, wanted: Wanted) -> tuple[int, int, bool]:
    """Bytes and results that would come, and whether the target would be whole then."""
    from builder.remote.pull import plan_pull

    offer = offered(project, found, wanted, [plan])
    made = plan_pull(offer, lambda blob: has(project, blob), lambda key: knows(project, key))
    return made.nbytes, len(made.results), plan.key in offer.manifests


def _pull_locked(
    project: Project, name: str, error: SourceError, opened: Sequence[Opened], emit: Emit, *, dry_run: bool
) -> PulledTarget:
    """A target whose sources are not here, by the key that artifacts.lock has. Raises `error` without one."""
    from builder.remote.offer import Wanted

    locked = _locked(project, name)
    if not locked:
        raise error
    key = Key(locked["key"])
    store = project.store
    for found in opened:
        wanted = Wanted(manifests=frozenset({key}))
        if dry_run:
            offer = offered(project, found, wanted, [])
            if key in offer.manifests:
                size = sum(e.blob.size for e in offer.manifests[key][0].files if not has(project, e.blob))
                return PulledTarget(name, CAN, size, 0, found.remote.name)
            continue
        size = take(project, found, wanted, emit)
        with build_session(store, [key]), acquire(store, [key], waiting(name, emit)):
            manifest = whole_manifest(store, key)
            if manifest is None:
                continue
            if "files" in locked and lockfile.files_digest(manifest) != locked["files"]:
                emit(Note(f"{name}: {found.remote.name} has other files than artifacts.lock names"))
            view = store.models / name
            if not views.is_current(store, view, manifest):
                base = project.spec.bases[project.spec.target(name).model.base]
                views.materialize(store, view, manifest, card.render(manifest, base, name))
            records.mark_used(store, key)
        emit(Note(f"{name}: pulled by its key in artifacts.lock, because {error.message.rstrip('.')}"))
        return PulledTarget(name, BUILT, size, 0, found.remote.name)
    return replace(PulledTarget(name, "not there"), nbytes=0)
