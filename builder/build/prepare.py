"""Makes sources usable: downloads or imports a base, fingerprints it, inspects it; checks an adapter."""

from __future__ import annotations

from pathlib import Path

from builder.build.hashing import hash_files
from builder.build.sharing import fetch_records
from builder.build.training import train_adapter
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.errors import BuildError, SourceChanged
from builder.keys import Key
from builder.plan import shares
from builder.plan.experts import WAITS
from builder.plan.types import TargetPlan, Unresolved
from builder.project.hashing import digest
from builder.project.project import Project
from builder.project.roots import register_key
from builder.project.toolchain import now
from builder.project.watch import require_adapter, show_import
from builder.sources import base as bases
from builder.sources import hub
from builder.sources.adapters.places import check_fit, placed, places_of
from builder.sources.adapters.reading import adapter_files, read_adapter
from builder.sources.adapters.tensors import check_finite
from builder.sources.adapters.types import AdapterInfo
from builder.sources.catalog import structure_key
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Unknown
from builder.spec.types import Adapter, Base, GgufSource, HfSource, Target, Variant
from builder.store import blobs, records
from builder.store.locks import acquire, build_session
from builder.store.types import FileEntry, Manifest, Record
from builder.weights import structure as structures

_FINITE: set[Key] = set()  # adapters that this process found finite: a first pass prepares its adapter twice


class ExpertsNotMeasured(BuildError):
    """{target} leaves experts out, and they are not measured yet."""

    exit_code = 2
    hint = "`doit model:{target}` measures them."


class BitsNotChosen(BuildError):
    """{target} asks for a size, and the bits of its weights are not chosen yet."""

    exit_code = 2
    hint = "`doit model:{target}` chooses them."


def prepare_base(project: Project, base: Base, emit: Emit, *, inspect_again: bool = False) -> BaseFacts:
    """Everything a plan needs to know of a base. Does nothing that has been done before.

    Raises SourceError, and what inspecting raises.
    """
    if isinstance(base.source, GgufSource):
        manifest = import_gguf_base(project, base, emit)
        identity = project.sources.imported_identity(base, manifest)
        directory = show_import(project.store, manifest)
    else:
        fetch_base(base, emit)
        hash_files(project, project.sources.files(base), f"base.{base.name}", emit)
        directory = project.sources.base_directory(base)
        known = project.sources.base_identity(base)
        if isinstance(known, Unknown):
            raise SourceChanged(source=f"base:{base.name}", path=directory)
        identity = known
    structure = None if inspect_again else project.sources.structure(identity.weights)
    if structure is None and not inspect_again:
        fetch_records(project, [structure_key(identity.weights)], emit)
        structure = project.sources.structure(identity.weights)
    if structure is None:
        structure = _inspect(project, base, directory, identity)
    project.forget_plan()
    return BaseFacts(identity, structure)


def fetch_base(base: Base, emit: Emit) -> None:
    """Downloads a base from a hub, unless it is there. Raises SourceError."""
    if isinstance(base.source, HfSource) and bases.locate(base) is None:
        emit(Note(f"base:{base.name}: downloading {base.source.repo} at {base.source.revision}"))
        hub.download(base.source.repo, base.source.revision, f"base.{base.name}")


def prepare_sources(project: Project, target: Target, emit: Emit) -> None:
    """The base, the adapter and the text of a target. Raises SourceError, and what inspecting raises."""
    model, variant = target.model, target.variant
    prepare_base(project, project.spec.bases[model.base], emit)
    if model.adapter:
        prepare_adapter(project, project.spec.adapters[model.adapter], emit)
    if variant.calibration is not None:
        prepare_calibration(project, variant, emit)
    project.forget_plan()


def prepare_target(project: Project, target: Target, emit: Emit) -> TargetPlan:
    """Everything that a target is made from; then it can be planned.

    Raises what `prepare_sources` raises, BitsNotChosen, and PlanError where its declaration cannot be met.
    """
    prepare_sources(project, target, emit)
    plan = project.plan.targets[target.name]
    if isinstance(plan, Unresolved) and plan.error is not None:
        raise plan.error
    if isinstance(plan, Unresolved) and plan.reason in (WAITS, shares.WAITS):
        raise ExpertsNotMeasured(target=target.name)
    if isinstance(plan, Unresolved) and target.variant.goal is not None:
        raise BitsNotChosen(target=target.name)
    if not isinstance(plan, TargetPlan):  # a source was replaced since it was prepared
        raise SourceChanged(source=f"model:{target.name}", path=plan.reason)
    return plan


def prepare_calibration(project: Project, variant: Variant, emit: Emit) -> None:
    """Is the calibration text of a variant there? Before anything is made for it. Raises SourceMissing."""
    found = project.sources.calibration(variant)
    if isinstance(found, Unknown):
        if found.error is not None:
            raise found.error
        assert variant.calibration is not None
        digest(project, variant.calibration, emit)


def prepare_adapter(project: Project, adapter: Adapter, emit: Emit) -> AdapterFacts:
    """Train an adapter if that is to be done, fingerprint it, and check that it fits its base.

    Raises SourceError, and what training raises.
    """
    if adapter.train is not None:
        prepare_base(project, project.spec.bases[adapter.base], emit)  # its task may have left it to a build
        train_adapter(project, adapter, adapter.train, emit)
        adapter = project.adapter(adapter.name)
    for path in adapter_files(adapter):
        digest(project, path, emit)
    key = project.sources.adapter_key(adapter)
    info = read_adapter(adapter)
    if key not in _FINITE:
        check_finite(info, adapter)
        if key is not None:
            _FINITE.add(key)
    facts = project.sources.adapter_facts(adapter)
    require_adapter(project, adapter, key)
    if isinstance(facts, Unknown):
        raise SourceChanged(source=f"adapter:{adapter.name}", path=info.file.path)
    base = project.sources.base_facts(project.spec.bases[adapter.base])
    if isinstance(base, BaseFacts):
        fitted(adapter, base.structure)
        project.sources.note_adapter_checked(adapter)
    project.forget_plan()
    return facts


def fitted(adapter: Adapter, structure: structures.Structure) -> AdapterInfo:
    """An adapter under the names of its base. Raises SourceInvalid for a tensor that has no place there."""
    places = places_of(structure)
    info = placed(read_adapter(adapter), adapter, places)
    check_fit(adapter, info, places)
    return info


def import_gguf_base(project: Project, base: Base, emit: Emit) -> Manifest:
    """The manifest of a GGUF base as a Hugging Face style directory, imported once into the store."""
    from builder.sources.gguf.importing import import_gguf
    from builder.sources.gguf.location import resolve_gguf

    assert isinstance(base.source, GgufSource)
    source = resolve_gguf(base.source.package, base.source.path, f"base.{base.name}")
    digest(project, source, emit)
    key = project.sources.gguf_key(base)
    if key is None:
        raise SourceChanged(source=f"base:{base.name}", path=source)
    with (
        acquire(project.store, [key], waiting(f"base:{base.name}", emit)),
        build_session(project.store, [key]),
    ):
        manifest = project.sources.imported(base)
        if manifest is None or manifest.key != key:
            emit(Note(f"base:{base.name}: importing {source.name}"))
            entries = tuple(
                FileEntry(file.name, blobs.ingest(project.store, file.chunks))
                for file in import_gguf(source, table=f"base.{base.name}")
            )
            if project.sources.gguf_key(base) != key:  # replaced while it was read
                raise SourceChanged(source=f"base:{base.name}", path=source)
            inputs = {"gguf": project.sources.digest(source)}
            manifest = records.write_manifest(
                project.store, Manifest(key, "base", base.name, now(), entries, inputs=inputs)
            )
        show_import(project.store, manifest)
        register_key(project, key)
    return manifest


def _inspect(project: Project, base: Base, directory: Path, identity: BaseIdentity) -> structures.Structure:
    from builder.engine.inspect import inspect

    structure = inspect(directory, dequantize=base.dequantize, trust_remote_code=base.trust_remote_code)
    if identity.imported is None:
        now_there = project.sources.base_identity(base)
        if isinstance(now_there, Unknown) or now_there.weights != identity.weights:
            raise SourceChanged(source=f"base:{base.name}", path=directory)
    key = structure_key(identity.weights)
    made = {"base": base.name, "made": now()}
    with build_session(project.store, [key]):
        blob = blobs.ingest(project.store, [structures.to_text(structure).encode()])
        records.write(project.store, Record(key, "structure", blob, made))
    return structure
