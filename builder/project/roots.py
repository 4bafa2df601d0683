"""What a project needs of its store: the keys that gc must keep. Pure reading, but for `register`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from builder.console.events import Emit
from builder.errors import BuildError, GcRefused, SourceError
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project import memo
from builder.project.hashing import digest
from builder.project.project import Project
from builder.project.result_keys import reference_key
from builder.sources.catalog import structure_key
from builder.spec.types import GgufSource
from builder.store import checkouts
from builder.store.care.gc import GcPlan, Policy, plan_gc
from builder.store.care.inventory import survey

_TRIED: set[tuple[Path, Path, int]] = (
    set()
)  # once a run: asked for every target, and the store may be read-only


def root_keys(project: Project) -> frozenset[Key]:
    """Keys of every declared target, its actions, and the imports and structures of its base."""
    keys: set[Key] = set()
    for plan in project.plan.targets.values():
        if isinstance(plan, TargetPlan):
            keys |= {plan.key, *plan.keys, structure_key(plan.base.weights)}
            keys |= _references(project, plan)
    for base in project.spec.bases.values():
        if isinstance(base.source, GgufSource) and (key := project.sources.gguf_key(base)):
            keys.add(key)
    return frozenset(keys)


def _references(project: Project, plan: TargetPlan) -> set[Key]:
    """What the unquantized model said to the questions of its fidelity suites: dear to make again."""
    suites = (project.spec.suites[name] for name in plan.target.model.suites)
    with suppress(BuildError):
        return {reference_key(project, plan, suite) for suite in suites if suite.kind == "fidelity"}
    return set()


def register(project: Project) -> None:
    """Tell the store what this checkout needs, for a gc that runs from another one."""
    folder = project.spec.file.parent
    checkouts.register(project.store, folder, root_keys(project))
    if inputs := memo.inputs(project.spec, project.sources):
        project.cache.put("registered", inputs, checkouts.identity(project.store, folder))


def keep_registered(project: Project) -> None:
    """Register unless this checkout has done so since its declaration was last written. Best effort.

    For runs that find everything built: a build registers anyway.
    """
    folder = project.spec.file.parent
    with suppress(BuildError, OSError):
        written = project.spec.file.stat().st_mtime_ns
        if (project.store.root, folder, written) in _TRIED:
            return
        _TRIED.add((project.store.root, folder, written))
        if checkouts.registered_since(project.store, folder, written):
            return
        inputs = memo.inputs(
            project.spec, project.sources
        )  # the file was written, maybe only touched: planning it all takes longer
        known = project.cache.get("registered", inputs) if inputs else None
        if known and known == checkouts.identity(project.store, folder):
            checkouts.still(project.store, folder)
        else:
            register(project)


def fingerprint(project: Project, emit: Emit) -> None:
    """Hash the files of bases whose digest is not known; imports, downloads and inspects nothing."""
    for base in project.spec.bases.values():
        with suppress(SourceError):  # an unusable source: its targets stay unknown, which keeps them
            for path in project.sources.files(base):
                digest(project, path, emit)
    project.forget_plan()


def gc_plan(project: Project, policy: Policy) -> GcPlan:
    """What a gc would delete now. Raises GcRefused, StoreError.

    While a target cannot be planned (its source is not there), this checkout's last known roots stay too:
    what is not known is not deleted.
    """
    unknown = [plan for plan in project.plan.targets.values() if not isinstance(plan, TargetPlan)]
    folder = project.spec.file.parent
    roots = root_keys(project)
    if unknown:
        ours = (c.keys for c in checkouts.registered(project.store) if c.folder == folder.resolve())
        roots = roots.union(*ours)
    if unknown and not roots and not policy.allow_no_roots:
        what = f"what the declared targets need is not known ({unknown[0].name}: {unknown[0].reason}), so"
        raise GcRefused(what=f"{what} everything would be deleted", hint="`doit plan` says what is missing.")
    return plan_gc(survey(project.store), roots, policy, time.time_ns(), folder)


def freeable(project: Project) -> int:
    """Bytes that a plain `doit gc` would free."""
    return gc_plan(project, Policy(allow_no_roots=True)).bytes
