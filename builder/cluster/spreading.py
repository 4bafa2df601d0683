"""What a run builds and measures, spread over a cluster. Afterwards the store has it, and the run goes on.

A cluster fills the store, as a remote does: whatever it made is found by its key, and what it could not make
is an error of that target.
"""

from __future__ import annotations

import atexit
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from builder.build.allocation import fetch_bits
from builder.build.exact import lacks_source, source_of
from builder.build.prepare import prepare_sources
from builder.build.sharing import fetch, fetch_records, fetch_results, look_again, send, send_keys
from builder.cluster.connection import Cluster, connect, introduce
from builder.cluster.jobs import Job, block_jobs, distinct, reference_job, suites_job, target_job
from builder.cluster.running import Outcome, run_jobs
from builder.console.events import Emit, Note
from builder.console.interrupt import meaning
from builder.console.words import count
from builder.errors import BuildError
from builder.evaluate.run import measured
from builder.evaluate.threshold import open_candidates
from builder.keys import Key
from builder.plan.planning import facts_of
from builder.plan.types import TargetPlan, Unresolved
from builder.project.machines import cluster_address
from builder.project.project import Project
from builder.project.remotes import bundle_of, remotes_of, sources_bundle
from builder.project.result_keys import is_timed, needs_directory, reference_key, result_key
from builder.project.roots import keys_of
from builder.project.state import missing_actions, reads_source
from builder.spec.sharing import Remote
from builder.spec.types import Target
from builder.store.holdings import usable_record, whole_manifest
from builder.store.locks import build_session

_CANCELLED = "The jobs of the cluster are cancelled. What workers finished is kept; the same command goes on."


@dataclass
class _Known:
    """The cluster of this process, and which jobs of which targets failed."""

    clusters: dict[str, Cluster] = field(default_factory=dict)
    failed: dict[tuple[str, str], BuildError] = field(default_factory=dict)


_KNOWN = _Known()


def cluster_of(emit: Emit) -> Cluster:
    """The cluster of this run, connected and checked once. Raises BuildError."""
    address = cluster_address()
    if address not in _KNOWN.clusters:
        cluster = _KNOWN.clusters[address] = connect(address, emit)
        atexit.register(cluster.client.close)
    return _KNOWN.clusters[address]


# -- building --------------------------------------------------------------------------------------------


def spread_builds(project: Project, name: str, selected: Collection[str], emit: Emit) -> None:
    """Makes what is missing of every selected target, not only of `name`. Raises what kept `name` from it."""
    wanted = [target for target in project.spec.targets if target.name == name or target.name in selected]
    wanted = [target for target in wanted if ("build", target.name) not in _KNOWN.failed]
    for target in wanted:
        _prepare(project, target, target.name == name, emit)
    project.forget_plan()
    plans = [project.plan.targets[target.name] for target in wanted]
    fetch(project, [plan for plan in plans if isinstance(plan, TargetPlan)], emit)
    if jobs := build_jobs(project, plans, cluster_of(emit).width):
        _run(project, plans, jobs, "build", emit)
    _raise("build", name)


def build_jobs(project: Project, plans: Sequence[TargetPlan | Unresolved], width: int) -> list[Job]:
    """The jobs of targets that are not whole: runs of blocks, and targets that are made as a whole.

    What a learned target or an exact GGUF reads is made before it. A target whose bits are not chosen comes
    last, because the search for them may need any block of its model.
    """
    todo = [plan for plan in plans if _is_missing(project, plan)]
    jobs: list[Job] = []
    for model in dict.fromkeys(plan.target.model.name for plan in todo):
        jobs += _jobs_of_model(project, [p for p in todo if p.target.model.name == model], width)
    return distinct(jobs)


def _jobs_of_model(project: Project, todo: Sequence[TargetPlan | Unresolved], width: int) -> list[Job]:
    store, planned = project.store, [plan for plan in todo if isinstance(plan, TargetPlan)]
    exact = [plan for plan in planned if _is_exact(plan)]
    reading = [plan for plan in planned if reads_source(store, plan)]
    read = [project.plan.targets[name] for plan in reading for name in plan.reads]
    read += [source_of(project, plan) for plan in exact if lacks_source(project, plan)]
    made = {p.name: p for p in [*planned, *read] if isinstance(p, TargetPlan)}
    passes = {name: plan for name, plan in made.items() if _in_a_pass(plan)}
    missing = {name: missing_actions(store, plan) for name, plan in passes.items()}
    blocks = block_jobs([*passes.values()], missing, width)
    alone = [plan for plan in made.values() if _goes_by_text(plan) and _is_missing(project, plan)]
    rounded = [target_job(p.name, [p.key]) for p in alone]
    learned = [
        target_job(p.name, [p.key], [*blocks, *(rounded if p.start else ())])
        for p in planned
        if p.needs is not None
    ]
    repacked = [target_job(p.name, [p.key], [*blocks, *rounded]) for p in exact]
    searched: list[Job] = []
    for plan in todo:
        if isinstance(plan, Unresolved):  # one after the other: they may need the same costs of weights
            searched.append(target_job(plan.name, (), [*blocks, *rounded, *searched]))
    return [*blocks, *rounded, *learned, *repacked, *searched]


def _in_a_pass(plan: TargetPlan) -> bool:
    return plan.needs is None and not _goes_by_text(plan) and not _is_exact(plan)


def _goes_by_text(plan: TargetPlan) -> bool:
    """Whether a text runs through the model before or while blocks are made."""
    variant = plan.target.variant
    return variant.rounds_for_text or (variant.gguf is not None and variant.gguf.weighed is not None)


def _is_exact(plan: TargetPlan) -> bool:
    """Whether it is a GGUF whose blocks are repacked from those of another target."""
    return plan.gguf is not None and plan.gguf.of is not None


def _is_missing(project: Project, plan: TargetPlan | Unresolved) -> bool:
    if isinstance(plan, Unresolved):
        return plan.error is None and plan.target.variant.goal is not None
    if whole_manifest(project.store, plan.key) is not None:
        return False
    return bool(missing_actions(project.store, plan)) if plan.needs is None else True


def _prepare(project: Project, target: Target, asked: bool, emit: Emit) -> None:
    """Sources of a target, so that it has keys. Those of another target are reported by its own task."""
    try:
        prepare_sources(project, target, emit)
        facts, goal = facts_of(target, project.planned_from()), target.variant.goal
        if goal is not None and not goal.smallest and not isinstance(facts, Unresolved):
            fetch_bits(project, target, facts, emit)
    except BuildError:
        if asked:
            raise


# -- measuring -------------------------------------------------------------------------------------------


def spread_threshold(project: Project, model: str, emit: Emit) -> None:
    """Measures what a search for the smallest target of a model asks, as many at once as there are workers.

    Raises BuildError.
    """
    while names := open_candidates(project, model, cluster_of(emit).width):
        built = [name for name in names if needs_directory(project.spec, project.spec.target(name))]
        if built:
            spread_builds(project, built[0], built, emit)
        spread_evaluations(project, names[0], names, emit, whole=False)
        for name in names:
            _raise("build", name)
            _raise("eval", name)
        if {*names} & {*open_candidates(project, model, len(names))}:
            return  # what stays on this machine is measured here


def spread_evaluations(
    project: Project, name: str, others: Collection[str], emit: Emit, *, whole: bool = True
) -> None:
    """Measures what is not known of `name` and of the others. Raises what kept `name` from it.

    whole: of the others only those that are built here. A worker makes what is missing of a target.
    """
    project.forget_plan()
    plans = []
    for target in project.spec.targets:
        plan = project.plan.targets[target.name]
        asked = target.name == name or target.name in others
        if asked and isinstance(plan, TargetPlan) and ("eval", plan.name) not in _KNOWN.failed:
            ready = not whole or not needs_directory(project.spec, target)
            ready = ready or whole_manifest(project.store, plan.key) is not None
            plans += [plan] if ready or target.name == name else []
    if jobs := evaluation_jobs(project, plans, emit):
        _run(project, plans, jobs, "eval", emit)
        found = [key for job in jobs if job.kind == "suites" for key in job.keys]
        fetch_results(project, found, emit)  # what is asked next depends on them
    _raise("eval", name)


def evaluation_jobs(project: Project, plans: Sequence[TargetPlan], emit: Emit) -> list[Job]:
    """What nobody has measured of targets: for each, one job for all suites that are scored in one pass, and
    one for each other. What they are compared with is measured once, before.

    A time or a memory is of this machine, and a command may be here alone, so these stay.
    """
    references: dict[Key, Job] = {}
    jobs: list[Job] = []
    for plan in plans:
        model, asked = plan.target.model, project.spec.suites_of(plan.target)
        suites = [suite for suite in asked if suite.kind != "command" and not is_timed(model, suite)]
        keys = {suite.name: result_key(project, model, plan.measured, suite) for suite in suites}
        fetch_results(project, keys.values(), emit)
        known = measured(project, plan, suites)
        todo = [suite for suite in suites if suite.name not in known]
        needed = []
        for suite in (suite for suite in todo if suite.kind == "fidelity"):
            key = reference_key(project, plan, suite)
            fetch_records(project, [key], emit)
            if usable_record(project.store, key) is None:
                needed.append(references.setdefault(key, reference_job(plan.name, suite.name, key)))
        if scored := {suite.name: keys[suite.name] for suite in todo if suite.kind != "generate"}:
            jobs.append(suites_job(plan.name, scored, needed))
        generated = (suite.name for suite in todo if suite.kind == "generate")
        jobs += [suites_job(plan.name, {name: keys[name]}) for name in generated]
    return [*references.values(), *jobs]


# -- both ------------------------------------------------------------------------------------------------


def _run(
    project: Project, plans: Sequence[TargetPlan | Unresolved], jobs: Sequence[Job], phase: str, emit: Emit
) -> Outcome:
    """Runs jobs while this machine keeps what they lead to. Notes which targets failed."""
    cluster, remote = cluster_of(emit), _remote(project)
    planned = [plan for plan in plans if isinstance(plan, TargetPlan)]
    with build_session(project.store, [key for plan in planned for key in keys_of(plan)]) as session:
        brief = {
            "declaration": project.spec.text.decode("utf-8"),
            "session": session.id,
            "remote": remote.name if remote else "",
            "versions": dict(cluster.versions),
        }
        same = project.spec.build.device == "same"
        shared = introduce(cluster, brief, same_device=same, emit=emit)
        if remote is not None and not shared:
            _give(project, remote, planned, emit)
        with meaning(_CANCELLED):
            outcome = run_jobs(cluster, brief, jobs, emit)
    look_again()
    project.forget_plan()
    for job in jobs:
        if job.id in outcome.failed:
            _KNOWN.failed |= {(phase, name): outcome.failed[job.id] for name in job.targets}
    made = sum(map(len, outcome.made.values()))
    emit(Note(f"cluster: {count(len(outcome.made), 'job')} done, {made} made, the rest was known"))
    return outcome


def _give(project: Project, remote: Remote, plans: Sequence[TargetPlan], emit: Emit) -> None:
    """What workers need of this store, and would make again: adapters that were trained, blocks, targets."""
    bundles = [*(bundle_of(project, plan) for plan in plans), *(sources_bundle(project, p) for p in plans)]
    send(project, remote, [bundle for bundle in bundles if bundle is not None], emit)
    here = {key for plan in plans for key in plan.keys if usable_record(project.store, key)}
    send_keys(project, remote, here, emit)


def _remote(project: Project) -> Remote | None:
    """The first remote that can be written."""
    web = ("http://", "https://")
    return next((each for each in remotes_of(project) if not each.url.startswith(web)), None)


def _raise(phase: str, name: str) -> None:
    """Raises what kept a target from being made or measured."""
    if error := _KNOWN.failed.get((phase, name)):
        raise error
