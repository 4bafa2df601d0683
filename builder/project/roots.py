"""What a project needs of its store: the keys that gc must keep. Pure reading, but for `register`."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder.console.events import Emit
from builder.errors import BuildError, GcRefused, SourceError
from builder.keys import Key, digest_bytes
from builder.plan.types import TargetPlan
from builder.project.hashing import digest
from builder.project.project import Project
from builder.project.result_keys import measured_keys
from builder.sources.catalog import structure_key
from builder.sources.facts import Unknown
from builder.sources.trained import recipe_of
from builder.spec.types import Adapter, GgufSource
from builder.store import checkouts
from builder.store.care.gc import plan_gc, with_fresh
from builder.store.care.inventory import survey
from builder.store.care.policy import GcPlan, Policy
from builder.store.holdings import whole_manifest

PUBLISHED = "published"  # the files that publications made and their results, by the publication's name
_REGISTERED = "registered"  # what a checkout registered last, by its folder
# Once a run: asked for every target, and the store may be read-only.
_TRIED: set[tuple[Path, Path, bytes]] = set()


@dataclass(frozen=True)
class Roots:
    """What a checkout needs. `doubts`: what could not be found out, one clause each; then the last known
    roots stay.
    """

    keys: frozenset[Key]
    doubts: tuple[str, ...]


def keys_of(plan: TargetPlan) -> frozenset[Key]:
    """Everything that a target consists of or is made from, in the store."""
    imported = plan.base.identity.imported
    made_from = {structure_key(plan.base.weights), *([imported] if imported else [])}
    return frozenset({plan.key, *plan.keys, *made_from, *plan.measurements})


def roots_of(project: Project) -> Roots:
    """Keys of every declared target, its actions, the imports and structures of its base, and what was
    measured.

    One source that is not there, or one suite whose questions are missing, is a doubt about itself and
    nothing else.
    """
    keys: set[Key] = set()
    doubts: list[str] = []
    for plan in project.plan.targets.values():
        if not isinstance(plan, TargetPlan):
            doubts.append(f"{plan.name}: {plan.reason}")
            continue
        keys |= keys_of(plan)
        for suite in project.spec.suites_of(plan.target):
            try:
                keys |= measured_keys(project, plan, suite)
            except (BuildError, OSError) as error:
                doubts.append(f"suite {suite.name}: {error}")
    for name in project.spec.publications:
        keys |= {Key(key) for key in (project.cache.get(PUBLISHED, name) or b"").decode().split()}
    for base in project.spec.bases.values():
        if isinstance(base.source, GgufSource):
            try:
                keys |= {key} if (key := project.sources.gguf_key(base)) else set()
            except (BuildError, OSError) as error:
                doubts.append(f"base {base.name}: {error}")
    for adapter in project.spec.adapters.values():
        try:
            keys |= trained_keys(project, adapter)
        except (BuildError, OSError) as error:
            doubts.append(f"adapter {adapter.name}: {error}")
    return Roots(frozenset(keys), tuple(doubts))


def trained_keys(project: Project, adapter: Adapter) -> frozenset[Key]:
    """The key of a trained adapter, and of its checkpoints while it is not done. Raises SourceError."""
    if adapter.train is None:
        return frozenset()
    recipe = recipe_of(project.sources, adapter, adapter.train)
    if isinstance(recipe, Unknown):
        return frozenset()
    if whole_manifest(project.store, recipe.key) is not None:
        return frozenset({recipe.key})
    return frozenset({recipe.key, *(recipe.checkpoint_key(step) for step in adapter.train.checkpoints)})


def known_roots(project: Project) -> Roots:
    """The roots, and where there is a doubt those that this checkout had last: doubt keeps. Raises
    StoreError.
    """
    roots = roots_of(project)
    if not roots.doubts and _says_the_same(project):
        return roots
    doubts = roots.doubts or (f"{project.spec.file.name} was written meanwhile",)
    return Roots(roots.keys | _last(project), doubts)


def _last(project: Project) -> frozenset[Key]:
    """The roots that this checkout had last. Raises StoreError."""
    folder = project.spec.file.parent.resolve()
    ours = (c.keys for c in checkouts.registered(project.store) if c.folder == folder)
    return frozenset[Key]().union(*ours)


def register(project: Project) -> None:
    """Tell the store what this checkout needs, for a gc that runs from another one."""
    folder = project.spec.file.parent.resolve()
    checkouts.register(project.store, folder, known_roots(project).keys)
    project.cache.put(_REGISTERED, str(folder), _registered(project).encode())


def _says_the_same(project: Project) -> bool:
    """Whether the declaration is still the one that this run has read."""
    try:
        return project.spec.file.read_bytes() == project.spec.text
    except OSError:
        return False


def _registered(project: Project) -> str:
    """Which declaration this run has read, and which roots the store has of its checkout."""
    said = checkouts.identity(project.store, project.spec.file.parent)
    return f"{digest_bytes(project.spec.text)} {said}"


def register_key(project: Project, key: Key) -> None:
    """Register unless this checkout has said that it needs `key`: what was just imported, before a build."""
    if key not in _last(project):
        register(project)


def keep_registered(project: Project) -> None:
    """Register unless this checkout has done so with this very declaration. Best effort.

    For runs that find everything built: a build registers anyway.
    """
    with suppress(BuildError, OSError):
        project.spec.file.stat()  # one that is gone declares nothing
        asked = (project.store.root, project.spec.file, project.spec.text)
        if asked in _TRIED:
            return
        _TRIED.add(asked)
        folder = project.spec.file.parent.resolve()
        if project.cache.get(_REGISTERED, str(folder)) != _registered(project).encode():
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

    While something cannot be found out (a source is not there), this checkout's last known roots stay too:
    what is not known is not deleted.
    """
    roots, folder = known_roots(project), project.spec.file.parent
    if roots.doubts and not roots.keys and not policy.allow_no_roots:
        what = (
            f"what the declared targets need is not known ({roots.doubts[0]}), so everything would be deleted"
        )
        raise GcRefused(what=what, hint="`doit plan` says what is missing.")
    names = None if roots.doubts else {target.name for target in project.spec.targets}
    found = survey(project.store, folder)
    return with_fresh(found, plan_gc(found, roots.keys, policy, time.time_ns(), folder, names))


def freeable(project: Project) -> int:
    """Bytes that a plain `doit gc` would free."""
    return gc_plan(project, Policy(allow_no_roots=True)).bytes
