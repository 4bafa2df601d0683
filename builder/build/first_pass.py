"""The first build of a base reads it once: its files are hashed while blocks are made of them.

Keys hold the digests of the base's files, so nobody knows them before these are read. Until then every block
has a provisional key, which holds the stat of each file. What is made is noted under that key
(builder.build.ledger). When the last file is hashed the plan is made again, from the digests, and each note
becomes the record of its key. So keys, records and bytes are those of a base that was fingerprinted first.

Where the files do not hold one block after the other, a base that the page cache holds is hashed beside the
pass, by another thread. A larger one is read twice.

A killed first pass leaves its notes, and the digests of the files that it read to their ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from builder.build.blocks import Tally
from builder.build.hashing import hashed_beside, noting
from builder.build.ledger import Provisional
from builder.build.one_pass import make_missing
from builder.build.prepare import fitted, prepare_adapter, prepare_base
from builder.build.reading import Reading, by_blocks, by_files
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.errors import SourceChanged
from builder.keys import Digest, Key
from builder.plan.types import TargetPlan, Unresolved
from builder.project import peaks, preflight
from builder.project.machines import cluster_address
from builder.project.project import Project
from builder.project.remotes import remotes_of
from builder.project.toolchain import now
from builder.sources import base as bases
from builder.sources.catalog import structure_key
from builder.sources.facts import NOT_YET, Unknown
from builder.sources.unread import Unread, unread
from builder.spec.types import Base, GgufSource, Target
from builder.store import blobs, records
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Record
from builder.weights import structure as structures

if TYPE_CHECKING:
    from builder.engine.stream import Stream

SYNCS = 8  # records that are written at a time: each waits for the disk
SECOND = 0.1  # the part of a base that mlx may read for itself, a second time


_SPREAD = "its files do not hold one block after the other"


class _Twice(Exception):
    """Why a base must be read twice, in words: once to know its digest, once to build."""


@contextmanager
def first_pass(project: Project, name: str, selected: Collection[str], emit: Emit) -> Iterator[Tally | None]:
    """Makes the blocks of a target, and of every selected target of its model, where its base was never read.

    None where the base is known, or must be read before. What is recorded stays while the context is open.
    Raises BuildError.
    """
    targets = _targets(project, name, selected)
    if not targets:
        yield None
        return
    with ExitStack() as session:
        try:
            with ExitStack() as hashing:
                tally = None
                if (look := _look(project, targets, hashing, emit)) is not None:
                    keys = [key for plan in look.plans for key in plan.keys]
                    session.enter_context(build_session(project.store, keys))
                    tally = _read(project, look, hashing, emit)
        except _Twice as refused:
            emit(Note(f"base:{targets[0].model.base}: {refused}, so it is read twice"))
        yield tally


def reads(project: Project, base: Base, selected: Collection[str]) -> bool:
    """Whether the build of some selected target will be the first to read a base, and hash it meanwhile."""
    return any(
        target.model.base == base.name and _targets(project, target.name, selected)
        for target in project.spec.targets
        if target.name in selected
    )


def _targets(project: Project, name: str, selected: Collection[str]) -> list[Target]:
    """The targets of the pass that makes `name`. Empty where that is not the first pass over a base."""
    model = project.spec.target(name).model
    base = project.spec.bases[model.base]
    found = [
        target
        for target in project.spec.targets
        if target.model.name == model.name and (target.name == name or target.name in selected)
    ]
    plain = [target for target in found if _is_plain(target)]
    if remotes_of(project) or cluster_address():  # what others have or make is found by keys
        return []
    if model.adapter is not None and project.spec.adapters[model.adapter].train is not None:
        return []  # training reads the base first
    if isinstance(base.source, GgufSource) or name not in {target.name for target in plain}:
        return []
    plan = project.plan.targets[name]
    if isinstance(plan, Unresolved) and plan.error is not None:
        return []
    known = project.sources.base_identity(base)
    if isinstance(known, Unknown):
        return plain if known.reason == NOT_YET else []
    look = _unread(project, base).base_identity(base)
    begun = not isinstance(look, Unknown) and _ledger(project).is_begun(look.weights)
    return plain if begun else []


def _is_plain(target: Target) -> bool:
    variant = target.variant
    return not variant.made_from and variant.calibration is None and variant.goal is None


def _ledger(project: Project) -> Provisional:
    return Provisional(project.store, project.cache)


def _unread(project: Project, base: Base) -> Unread:
    """The sources as they look before the base is read. Raises SourceError."""
    directory = project.sources.base_directory(base)
    weights = bases.list_files(base, directory).weights
    return unread(project.sources, frozenset(path for path in weights if path.suffix == ".safetensors"))


# -- before ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """A project whose base is unread, the plans of the targets in it, and the digests of shards.

    `digests`: at first those that an earlier pass has read to the end. `ledger`: what is made. `hashed`:
    waits for the shards that are being hashed apart from the pass.
    """

    base: Base
    project: Project
    plans: tuple[TargetPlan, ...]
    ledger: Provisional
    shards: tuple[Path, ...]
    digests: dict[Path, Digest] = field(default_factory=dict)
    hashed: Callable[[], None] | None = None


def _look(project: Project, targets: list[Target], hashing: ExitStack, emit: Emit) -> _Look | None:
    """Looks at the sources without reading the base. None where that does not suffice. Raises BuildError."""
    from builder.engine.inspect import inspect

    model = targets[0].model
    base = project.spec.bases[model.base]
    directory, sources = project.sources.base_directory(base), _unread(project, base)
    shards = tuple(sorted(sources.shards))
    view = Project(project.spec, project.store, project.cache, sources)
    identity = sources.base_identity(base)
    if isinstance(identity, Unknown):
        return None
    if (begun := peaks.begun_bytes(base)) is None:
        raise _Twice(_SPREAD)
    known = {path: digest for path in shards if (digest := project.sources.known_digest(path)) is not None}
    hashed = None
    if not begun:  # while mlx is imported, a core is free
        hashed = hashing.enter_context(hashed_beside(_unhashed(project, shards, known), _table(base)))
    structure = inspect(directory, dequantize=base.dequantize, trust_remote_code=base.trust_remote_code)
    sources.structures[identity.weights] = structure
    if model.adapter is not None:
        adapter = project.spec.adapters[model.adapter]
        prepare_adapter(project, adapter, emit)
        if any(tensor.through for tensor in fitted(adapter, structure).tensors):
            raise _Twice("the adapter changes tensors that mlx-lm changes while it loads them")
    plans = [view.plan.targets[target.name] for target in targets]
    for plan in plans:
        if isinstance(plan, Unresolved) and plan.name == targets[0].name and plan.error is not None:
            raise plan.error
    made = tuple(plan for plan in plans if isinstance(plan, TargetPlan))
    return _Look(base, view, made, _ledger(project), shards, known, hashed) if made else None


# -- the pass --------------------------------------------------------------------------------------------


def _read(project: Project, look: _Look, hashing: ExitStack, emit: Emit) -> Tally:
    """Makes and notes the blocks, hashes the shards, and turns notes into records. Raises BuildError."""
    started = time.perf_counter()
    missing = {action.key: action for plan in look.plans for action in look.ledger.missing(plan)}
    preflight.check(look.project, look.plans[0], missing.values(), look.plans)
    tally = Tally()

    def read(stream: Stream, wanted: Collection[str]) -> Reading:
        hashed = look.hashed
        if hashed is None:
            files = _unhashed(project, look.shards, look.digests)
            reading = by_files(look.project, look.plans[0], stream, wanted, files)
            if (why := _why_not(look, reading)) is None:
                return reading
            if not peaks.stays_cached(look.plans[0].base.structure.nbytes):
                raise _Twice(why)
            hashed = hashing.enter_context(hashed_beside(files, _table(look.base)))
        return replace(by_blocks(look.project, look.plans[0], stream, wanted), hashed=hashed)

    look.ledger.begin(look.plans[0].base.weights)
    make_missing(look.project, look.plans, tally, emit, look.ledger, read)
    _record(project, look, tally, emit)
    tally.seconds = time.perf_counter() - started
    return tally


def _unhashed(
    project: Project, shards: Sequence[Path], digests: dict[Path, Digest]
) -> dict[Path, Callable[[Digest], None]]:
    """The shards without a digest, and who takes it."""
    return {path: _hashed(project, path, digests) for path in shards if path not in digests}


def _table(base: Base) -> str:
    return f"base.{base.name}"


def _hashed(project: Project, path: Path, digests: dict[Path, Digest]) -> Callable[[Digest], None]:
    remember = noting(project, path)

    def note(digest: Digest) -> None:
        digests[path] = digest
        remember(digest)

    return note


def _why_not(look: _Look, reading: Reading) -> str | None:
    """Why reading the files from end to end costs more than reading them twice. None where it does not."""
    structure = look.plans[0].base.structure
    if reading.missing > SECOND * structure.nbytes:
        return "mlx-lm changes its tensors while it loads them"
    if peaks.is_spread(reading.open_bytes, max(structure.block_nbytes.values())):
        return _SPREAD
    return None


# -- afterwards ------------------------------------------------------------------------------------------


def _record(project: Project, look: _Look, tally: Tally, emit: Emit) -> None:
    """Plans from the digests, and records under its keys what was noted. Raises SourceChanged."""
    ledger, structure = look.ledger, look.plans[0].base.structure
    for path in look.shards:
        now_there = project.sources.known_digest(path) or project.sources.digest(path)
        if now_there != look.digests[path]:
            raise SourceChanged(source=f"base:{look.base.name}", path=path)
    found = project.sources.base_identity(look.base)
    if isinstance(found, Unknown):
        raise SourceChanged(source=f"base:{look.base.name}", path=look.shards[0])
    key = structure_key(found.weights)
    if usable_record(project.store, key) is None:
        blob = blobs.ingest(project.store, [structures.to_text(structure).encode()])
        records.write(project.store, Record(key, "structure", blob, {"base": look.base.name, "made": now()}))
    prepare_base(project, look.base, emit)
    if (worn := look.plans[0].target.model.adapter) is not None:
        prepare_adapter(project, project.spec.adapters[worn], emit)
    noted = dict[Key, list[Key]]()
    for provisional in look.plans:
        plan = project.plan.targets[provisional.name]
        if not isinstance(plan, TargetPlan) or len(plan.keys) != len(provisional.keys):
            raise SourceChanged(source=f"model:{provisional.name}", path=look.shards[0])
        for former, key in zip(provisional.keys, plan.keys, strict=True):
            noted.setdefault(key, []).append(former)

    def settle(key: Key) -> None:
        record = next(filter(None, map(ledger.record, noted[key])), None)
        if record is not None and usable_record(project.store, key) is None:
            records.write(project.store, Record(key, record.kind, record.blob, record.provenance))

    on_wait = waiting(look.plans[0].target.model.name, emit, tally.waits)
    with acquire(project.store, noted, on_wait), ThreadPoolExecutor(SYNCS, "record") as threads:
        list(threads.map(settle, noted))
    for key, formers in noted.items():
        for former in formers:
            if former in tally.made:
                tally.made[key] = tally.made[former]
    ledger.end(look.plans[0].base.weights, (former for each in noted.values() for former in each))
