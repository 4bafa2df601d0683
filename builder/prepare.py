"""Makes sources usable: downloads or imports a base, fingerprints it, inspects it; checks an adapter."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from builder import structure as structures
from builder.errors import SourceError, SourceInvalid
from builder.keys import Digest
from builder.plan import AdapterFacts, BaseFacts, TargetPlan, Unknown, Unresolved
from builder.progress import Emit, Hashing, Note
from builder.project import Project, imported_facts, structure_key
from builder.record import FileEntry, Manifest, Record
from builder.sources import base as bases
from builder.sources.adapter import AdapterInfo, adapter_files, check_finite, read_adapter
from builder.sources.placing import Places, placed, places_of
from builder.spec import Adapter, Base, GgufSource, HfSource, Target, Variant
from builder.store import blobs, records, views
from builder.store.locks import acquire
from builder.unchanged import SourceChanged, require_adapter


class Undownloaded(SourceError):
    """[{table}] {repo} at revision {revision} could not be downloaded: {what}"""

    hint = "Download it once while you are online. After that, builds work offline."


def prepare_base(project: Project, base: Base, emit: Emit, *, inspect_again: bool = False) -> BaseFacts:
    """Everything a plan needs to know of a base. Does nothing that has been done before.

    Raises SourceError, and what inspecting raises.
    """
    if isinstance(base.source, GgufSource):
        weights, aux = imported_facts(base, import_gguf_base(project, base, emit))
    else:
        if isinstance(base.source, HfSource) and bases.locate(base) is None:
            _download(base, base.source, emit)
        for path in _files(project, base):
            _digest(project, path, emit)
        known = project.base_files(base)
        assert not isinstance(known, Unknown)
        weights, aux = known
    structure = None if inspect_again else project.structure(weights)
    if structure is None:
        structure = _inspect(project, base, weights)
    project.forget_plan()
    return BaseFacts(weights, structure, aux)


def prepare_target(project: Project, target: Target, emit: Emit) -> TargetPlan:
    """Everything that a target is made from; then it can be planned.

    Raises SourceError, what inspecting raises, and PlanError where its declaration cannot be met.
    """
    model, variant = target.model, target.variant
    prepare_base(project, project.spec.bases[model.base], emit)
    if model.adapter:
        prepare_adapter(project, project.spec.adapters[model.adapter], emit)
    if variant.learned is not None:
        prepare_calibration(project, variant, emit)
    project.forget_plan()
    plan = project.plan.targets[target.name]
    if isinstance(plan, Unresolved) and plan.error is not None:
        raise plan.error
    assert isinstance(plan, TargetPlan)
    return plan


def prepare_calibration(project: Project, variant: Variant, emit: Emit) -> None:
    """Is the text of a learned variant there? Before anything is made for it. Raises SourceMissing."""
    found = project.calibration(variant)
    if isinstance(found, Unknown):
        if found.error is not None:
            raise found.error
        assert variant.learned is not None
        _digest(project, variant.learned.calibration, emit)


def prepare_adapter(project: Project, adapter: Adapter, emit: Emit) -> AdapterFacts:
    """Fingerprint an adapter and check that it fits its base. Raises SourceError."""
    for path in adapter_files(adapter):
        _digest(project, path, emit)
    key = project.adapter_key(adapter)
    info = read_adapter(adapter)
    check_finite(info, adapter)
    facts = project.adapter_facts(adapter)
    require_adapter(project, adapter, key)
    if isinstance(facts, Unknown):
        raise SourceChanged(source=f"adapter:{adapter.name}", path=info.file.path)
    base = project.base_facts(project.spec.bases[adapter.base])
    if isinstance(base, BaseFacts):
        places = places_of(base.structure)
        check_fit(adapter, placed(info, adapter, places), places)
        project.note_adapter_checked(adapter)
    project.forget_plan()
    return facts


def check_fit(adapter: Adapter, info: AdapterInfo, places: Places) -> None:
    """Raises SourceInvalid naming the first tensor that the base has no place for."""
    for name in sorted(tensor.name for tensor in info.tensors):
        if not places.fits(name):
            raise SourceInvalid(
                table=f"adapter.{adapter.name}",
                path=adapter.path,
                what=f'tensor "{name}" matches nothing in base "{adapter.base}"',
                hint="Was it trained on another model? Correct `base` or `path` in artifacts.toml.",
            )


def import_gguf_base(project: Project, base: Base, emit: Emit) -> Manifest:
    """The manifest of a GGUF base as a Hugging Face style directory, imported once into the store."""
    from builder.sources.gguf import import_gguf
    from builder.sources.gguf_location import resolve_gguf

    assert isinstance(base.source, GgufSource)
    source = resolve_gguf(base.source.package, base.source.path, f"base.{base.name}")
    _digest(project, source, emit)
    key = project.gguf_key(base)
    assert key is not None
    with acquire(project.store, [key]):
        manifest = project.imported(base)
        if manifest is None:
            emit(Note(f"base:{base.name}: importing {source.name}"))
            entries = tuple(
                FileEntry(file.name, blobs.ingest(project.store, file.chunks))
                for file in import_gguf(source, table=f"base.{base.name}")
            )
            manifest = Manifest(
                key, "base", base.name, now(), entries, inputs={"gguf": project.digest(source)}
            )
            records.write_manifest(project.store, manifest)
        folder = project.store.bases / base.name
        if not views.is_current(project.store, folder, manifest):
            views.materialize(project.store, folder, manifest)
    return manifest


def _inspect(project: Project, base: Base, weights: Digest) -> structures.Structure:
    from builder.engine.inspect import inspect

    structure = inspect(
        project.base_directory(base),
        dequantize=base.dequantize,
        trust_remote_code=base.trust_remote_code,
    )
    now_there = project.base_files(base)
    if isinstance(now_there, Unknown) or now_there[0] != weights:
        raise SourceChanged(source=f"base:{base.name}", path=project.base_directory(base))
    blob = blobs.ingest(project.store, [structures.to_text(structure).encode()])
    records.write(
        project.store, Record(structure_key(weights), "structure", blob, {"base": base.name, "made": now()})
    )
    return structure


def _files(project: Project, base: Base) -> list[Path]:
    directory = bases.locate(base)
    assert directory is not None
    files = bases.list_files(base, directory)
    return [*files.weights, *files.copied]


def _digest(project: Project, path: Path, emit: Emit) -> Digest:
    total = path.stat().st_size
    done = 0

    def progress(piece: int) -> None:
        nonlocal done
        done += piece
        emit(Hashing(path.name, done, total))

    return project.digest(path, progress)


def _download(base: Base, source: HfSource, emit: Emit) -> None:
    from huggingface_hub import snapshot_download

    emit(Note(f"base:{base.name}: downloading {source.repo} at {source.revision}"))
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.py", "tokenizer.model", "*.tiktoken", "*.txt"]
    try:
        snapshot_download(source.repo, revision=source.revision, allow_patterns=wanted)
    except Exception as error:  # the hub client raises many kinds, all of them "not downloaded"
        raise Undownloaded(
            table=f"base.{base.name}",
            repo=source.repo,
            revision=source.revision,
            what=" ".join(str(error).split())[:200],
        ) from error


def now() -> str:
    """RFC 3339, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
