"""What runs on a worker: dask calls `meet` and `work` with plain data, and gets keys back.

The declaration comes with each job, as its text. Sources do not: paths of the declaration are relative to the
folder that the worker was started in, or that BUILDER_PROJECT names. What is made goes into the store there.
Where that is not the store of the person who asked, it is published into the remote too, block by block.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from builder.build.blocks import Tally
from builder.build.one_pass import make_missing
from builder.build.prepare import prepare_target
from builder.build.sharing import fetch_records, look_again
from builder.cluster.checks import Worker, version_problems
from builder.cluster.jobs import Job, job_from
from builder.cluster.publisher import kept, publish_target, publishing
from builder.cluster.telling import Stopped, Teller, telling
from builder.errors import BuildError, described_error
from builder.evaluate.run import evaluate, reference
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project import preflight
from builder.project.machines import CLUSTER
from builder.project.project import Project, store_of
from builder.project.remotes import remotes_of
from builder.project.result_keys import needs_directory, reference_key, result_key
from builder.project.roots import keys_of, register
from builder.project.state import missing_actions
from builder.project.toolchain import device, version_of
from builder.release.delivery import deliver
from builder.sources.catalog import Catalog
from builder.spec.parse import parse_spec
from builder.spec.place import DECLARATION
from builder.spec.sharing import Remote
from builder.store.holdings import usable_record
from builder.store.locks import build_session, measuring
from builder.store.statcache import StatCache

FOLDER = "BUILDER_PROJECT"  # of a worker that is not started in the folder of the project


class OtherInputs(BuildError):
    """{worker} would make something else of {target}: {what}."""

    exit_code = 2
    hint = (
        "Bring the same sources to that machine. Paths are relative to the folder where its worker started."
    )


class OtherVersions(BuildError):
    """the cluster cannot be used: {what}."""

    exit_code = 2
    hint = "Install the same versions on every machine, for example with constraints.txt."


class NoPlaceToPublish(BuildError):
    """it has another store, and no remote is declared that it could publish into"""

    hint = "Declare [remote.NAME] with a bucket or a folder that all machines reach: `builder help remote`."


def meet(brief: Mapping[str, Any]) -> dict[str, Any]:
    """Whether this worker has the store of the one who asks, or else a remote to publish into."""
    try:
        project = _project(brief)
        shares = _shares(project, brief)
        if not shares:
            _open_remote(project, brief)
    except BuildError as error:
        return {"device": device(), "shares": False, "problem": error.message.rstrip(".")}
    return {"device": device(), "shares": shares, "problem": ""}


def work(brief: Mapping[str, Any], data: Mapping[str, Any], *after: object) -> dict[str, Any]:
    """Does one job. Returns the keys of what was made, or a BuildError as plain data.

    after: what other jobs returned, which must end before.
    """
    job = job_from(data)
    os.environ.pop(CLUSTER, None)
    try:
        with telling(job) as tell:
            _require_versions(brief, tell.worker)
            project = _project(brief)
            project.forget_plan()
            look_again()
            remote = None if _shares(project, brief) else _remote(project, brief)
            with publishing(project, remote, tell) as publisher:
                tell.published_by(publisher)
                made = _DO[job.kind](project, job, remote, tell)
            return {"made": [*made]}
    except BuildError as error:
        return {"error": described_error(error)}
    except Stopped:
        return {"made": []}
    except Exception as error:  # a bug. As plain data, because not every exception can be sent
        traceback.print_exc()
        return {"bug": f"{type(error).__name__}: {error}"[:300]}


# -- jobs ------------------------------------------------------------------------------------------------


def _make_blocks(project: Project, job: Job, remote: Remote | None, tell: Teller) -> Sequence[Key]:
    """A run of blocks of several targets, in one pass."""
    plans = [_planned(project, name, tell) for name in job.targets]
    plans = [replace(p, actions=tuple(a for a in p.actions if a.block in job.blocks)) for p in plans]
    wanted = set(job.keys)
    _require(job, tell, plans[0].name, wanted, {action.key for plan in plans for action in plan.actions})
    plans = [replace(p, actions=tuple(a for a in p.actions if a.key in wanted)) for p in plans]
    with build_session(project.store, [key for plan in plans for key in plan.keys]):
        if remote is not None:
            fetch_records(project, wanted, tell, plans)
        missing = {a.key: a for plan in plans for a in missing_actions(project.store, plan)}
        preflight.check(project, plans[0], missing.values(), plans)
        register(project)
        tally = Tally()
        if missing:
            make_missing(project, plans, tally, tell)
    return list(tally.made)


def _make_target(project: Project, job: Job, remote: Remote | None, tell: Teller) -> Sequence[Key]:
    """A target as a whole, with everything that must be known for it."""
    name = job.targets[0]
    if job.keys:
        plan = _planned(project, name, tell)
        _require(job, tell, name, set(job.keys), {plan.key})
    before = kept(project)
    deliver(project, name, {name}, (), tell)
    found = project.plan.targets[name]
    if isinstance(found, TargetPlan):
        publish_target(project, remote, found, tell)
        return [key for key in found.keys if key not in before]
    return []


def _measure(project: Project, job: Job, remote: Remote | None, tell: Teller) -> Sequence[Key]:
    """Suites of a target. The target is pulled, or what is missing of it is made."""
    name = job.targets[0]
    plan = _planned(project, name, tell)
    suites = [suite for suite in project.spec.suites_of(plan.target) if suite.name in job.suites]
    own = {result_key(project, plan.target.model, plan.measured, suite): suite for suite in suites}
    _require(job, tell, name, set(job.keys), set(own))
    if needs_directory(project.spec, plan.target) and not project.is_built(name):
        deliver(project, name, {name}, (), tell)
    before = kept(project)
    results = evaluate(project, plan, tell, suites=suites)
    return [result.key for result in results.values() if result.key not in before]


def _make_reference(project: Project, job: Job, remote: Remote | None, tell: Teller) -> Sequence[Key]:
    """What all targets of a model are compared with, so that only one worker measures it."""
    name, (key,) = job.targets[0], job.keys
    plan = _planned(project, name, tell)
    suite = next(each for each in project.spec.suites_of(plan.target) if each.name in job.suites)
    _require(job, tell, name, {key}, {reference_key(project, plan, suite)})
    fetch_records(project, [key], tell)
    if usable_record(project.store, key) is not None:
        return []
    with measuring(project.store), build_session(project.store, keys_of(plan)):
        reference(project, plan, suite, tell)
    return [key]


_DO = {"blocks": _make_blocks, "target": _make_target, "reference": _make_reference, "suites": _measure}


# -- what they need --------------------------------------------------------------------------------------


def _require_versions(brief: Mapping[str, Any], worker: str) -> None:
    """A worker may have joined after the run began."""
    here: Mapping[str, str] = brief["versions"]
    own = {package: version_of(package) for package in here if package != "python"}
    problems = version_problems({**here, "python": "-"}, [Worker(worker, own)])
    if problems:
        raise OtherVersions(what="; ".join(problems))


def _planned(project: Project, name: str, tell: Teller) -> TargetPlan:
    return prepare_target(project, project.spec.target(name), tell)


def _require(job: Job, tell: Teller, target: str, wanted: set[Key], own: set[Key]) -> None:
    """Raises OtherInputs where this machine would make other keys, because something of a source differs."""
    if wanted <= own:
        return
    what = "the questions of its suites" if job.suites else "its base, its adapter or its text"
    raise OtherInputs(worker=tell.worker, target=target, what=f"{what} are others there, or its settings")


# -- where -----------------------------------------------------------------------------------------------


def _project(brief: Mapping[str, Any]) -> Project:
    """The project that is asked for, with the sources and the store of this machine. Raises BuildError."""
    return _opened(Path(os.environ.get(FOLDER) or Path.cwd()).absolute(), brief["declaration"])


@cache
def _opened(folder: Path, declaration: str) -> Project:
    spec = parse_spec(folder / DECLARATION, declaration.encode())
    store = store_of(spec)
    statcache = StatCache(store)
    return Project(spec, store, statcache, Catalog(spec, store, statcache))


def _shares(project: Project, brief: Mapping[str, Any]) -> bool:
    """Whether this is the store of the one who asks: his running build is registered in it."""
    return (project.store.locks / "builds" / f"{brief['session']}.json").exists()


def _remote(project: Project, brief: Mapping[str, Any]) -> Remote:
    return project.spec.remotes[brief["remote"]]


def _open_remote(project: Project, brief: Mapping[str, Any]) -> None:
    """Raises RemoteError, NoPlaceToPublish."""
    from builder.remote.connect import open_remote

    if not brief["remote"] or not remotes_of(project):
        raise NoPlaceToPublish()
    open_remote(_remote(project, brief))
