"""A publication of GGUF files: made, measured by llama.cpp, and sent only if they meet the requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from builder.console.events import Emit
from builder.evaluate.gguf import evaluate_file
from builder.evaluate.results import Missed, Result, missed
from builder.evaluate.run import measured
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.result_keys import measured_keys
from builder.project.roots import PUBLISHED, register
from builder.project.toolchain import made_by
from builder.publish import bundle, evidence, gguf_card, ollama
from builder.publish.bundle import File
from builder.publish.errors import PlaceRefused, PublishRefused
from builder.publish.evidence import Licence
from builder.publish.gguf.joining import known_joined, unjoined, wanted_type
from builder.publish.gguf.keeping import Gguf, mix_in_words
from builder.publish.gguf.streaming import plan_of, stream
from builder.publish.gguf_card import GgufFile
from builder.spec.destinations import EXACT, HubPlace, OllamaPlace, Publication
from builder.store import blobs
from builder.store.types import FileEntry, Manifest


@dataclass(frozen=True)
class _Made:
    """One file of the publication. `gguf` None: a dry run, which makes none."""

    name: str
    size: int
    plan: TargetPlan
    gguf: Gguf | None
    results: Mapping[str, Result]
    misses: tuple[Missed, ...]
    mix: str  # what a mixture of types really came out as


def gather(
    project: Project,
    publication: Publication,
    plan: TargetPlan,
    manifest: Manifest | None,
    found: Licence | None,
    emit: Emit,
    *,
    dry: bool,
) -> tuple[list[File], str, list[str], Manifest]:
    """The files, the card, the notes, and the manifest that the attestation is about. Raises BuildError.

    manifest: of the target that the card describes. None: the card describes the first file.
    """
    model = plan.target.model
    types = (wanted_type(plan),) if plan.gguf else publication.gguf
    made = [_made(project, publication, plan, kind, found, emit, dry=dry) for kind in types]
    if not dry:
        _root(project, publication, plan, made)
    short = [f"{each.name}: {'; '.join(map(str, each.misses))}" for each in made if each.misses]
    if short and publication.override is None and not dry:
        hint = (
            'Each file was measured with llama.cpp. To publish them all the same, say why: override = "..."'
        )
        raise PublishRefused(target=plan.name, what="; ".join(short), hint=hint)
    files = _files(project, made, emit)
    described = manifest or _described(made[0])
    to = publication.to
    system = evidence.system_prompt(project, model)
    if isinstance(to, OllamaPlace):
        files.append(_modelfile(to, made[0].name, system, found))
    address = to.repo if isinstance(to, HubPlace) else ""
    text = gguf_card.render(
        gguf_card.GgufEvidence(
            title=to.repo.partition("/")[2] if isinstance(to, HubPlace) else f"{model.name} as GGUF",
            address=address,
            base=project.spec.bases[model.base],
            base_model=evidence.base_repository(publication, project.spec.bases[model.base]),
            manifest=described,
            licence=found,
            datasets=publication.datasets,
            require=model.require,
            files=tuple(GgufFile(each.name, each.size, each.gguf, each.results) for each in made),
            system=system,
            override=publication.override,
        )
    )
    entries = tuple(FileEntry(each.name, each.gguf.blob) for each in made if each.gguf)
    notes = [f"{each.name} has {each.mix}" for each in made if each.mix]
    notes += short
    notes += (
        ["the GGUF files are not made yet, so their digests are not known"]
        if len(entries) < len(made)
        else []
    )
    if not model.require:
        notes.append(f"the files are published unmeasured: [model.{model.name}.require] names no condition")
    said = ", ".join(publication.gguf) or described.settings["gguf"]
    about = replace(described, files=entries, settings={**described.settings, "gguf": said})
    return files, text, notes, about


def _made(
    project: Project,
    publication: Publication,
    plan: TargetPlan,
    wanted: str,
    found: Licence | None,
    emit: Emit,
    *,
    dry: bool,
) -> _Made:
    file = plan if plan.gguf else plan_of(project, publication, plan, wanted, emit)
    about = _about(plan, found)
    gguf = known_joined(project, file, about) if dry else stream(project, file, about, emit)
    size, mix = (gguf.blob.size, gguf.mix) if gguf else unjoined(file)
    said = mix_in_words(wanted, mix, file.bits_per_weight)
    name = _name(plan, wanted, next(iter(mix)))
    results: dict[str, Result] = {}
    if gguf is not None and plan.target.model.suites:
        known = dry or plan.gguf is not None  # a declared target was measured before
        results = measured(project, file) if known else evaluate_file(project, file, gguf.blob, emit)
    if gguf is not None and wanted == EXACT and not plan.gguf:
        # A command does not measure a GGUF. What it measured of the very same weights counts.
        own = measured(project, plan)
        results |= {suite: own[suite] for suite in own if project.spec.suites[suite].kind == "command"}
    misses = tuple(missed(plan.target.model.require, results)) if gguf else ()
    return _Made(name, size, file, gguf, results, misses, said)


def _described(each: _Made) -> Manifest:
    """What a card says of a file that no declared target is."""
    files = (FileEntry(each.name, each.gguf.blob),) if each.gguf else ()
    made = each.gguf.made if each.gguf else made_by()
    plan = each.plan
    return Manifest(
        plan.key,
        "target",
        plan.name,
        str(made["made"]),
        files,
        inputs_of(plan),
        settings_of(plan),
        made,
        {"bits_per_weight": plan.bits_per_weight},
    )


def _about(plan: TargetPlan, found: Licence | None) -> dict[str, str]:
    """What a file says of itself beside what the model is."""
    licence = {"license": found.name} if found else {}
    return {"name": plan.target.model.name, "quantized_by": "modelkiln", **licence}


def _name(plan: TargetPlan, wanted: str, usual: str) -> str:
    model = plan.target.model.name
    return f"{model}-exact-{usual}.gguf" if wanted == EXACT else f"{model}-{wanted}.gguf"


def _root(project: Project, publication: Publication, plan: TargetPlan, made: Sequence[_Made]) -> None:
    """Says to gc that the files of a publication are needed, and what was measured of them."""
    keys = {each.gguf.key for each in made if each.gguf}
    for each in made:
        keys |= set(each.plan.measurements)
        for suite in project.spec.suites_of(each.plan.target):
            keys |= measured_keys(project, each.plan, suite)
    project.cache.put(PUBLISHED, publication.name, " ".join(sorted(keys)).encode())
    register(project)


def _modelfile(to: OllamaPlace, name: str, system: str | None, found: Licence | None) -> File:
    try:
        text = ollama.modelfile(name, system, found.name if found else None)
    except ValueError as error:
        raise PlaceRefused(to=to, what=str(error)) from error
    return bundle.of_bytes(ollama.MODELFILE, text)


def _files(project: Project, made: list[_Made], emit: Emit) -> list[File]:
    there = [
        (each.name, each.gguf.blob, blobs.path(project.store, each.gguf.blob.digest))
        for each in made
        if each.gguf
    ]
    unknown = [File(each.name, each.size, "", "", b"") for each in made if each.gguf is None]
    return [*bundle.of_blobs(there, project.cache, emit), *unknown]
