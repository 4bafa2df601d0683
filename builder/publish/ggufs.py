"""A publication of GGUF files: made, measured by llama.cpp, and sent only if they meet the requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from builder.console.events import Emit
from builder.evaluate.gguf import evaluate_gguf, keys_of_gguf, measured_gguf
from builder.evaluate.results import Missed, Result, missed
from builder.evaluate.run import measured
from builder.plan.types import TargetPlan
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.project.roots import PUBLISHED, register
from builder.publish import bundle, evidence, gguf_card, ollama
from builder.publish.bundle import File
from builder.publish.errors import PlaceRefused, PublishRefused
from builder.publish.evidence import Licence
from builder.publish.gguf.joining import join, known_joined, unjoined, wanted_type
from builder.publish.gguf.making import Gguf
from builder.publish.gguf.mixing import gguf_of, mix_in_words, outlook
from builder.publish.gguf_card import GgufFile
from builder.spec.destinations import EXACT, HubPlace, OllamaPlace, Publication
from builder.spec.types import UNSCORED
from builder.store import blobs
from builder.store.types import FileEntry, Manifest


@dataclass(frozen=True)
class _Made:
    """One file of the publication. `gguf` None: a dry run, which makes none."""

    name: str
    size: int
    gguf: Gguf | None
    results: Mapping[str, Result]
    misses: tuple[Missed, ...]
    mix: str  # what a mixture of types really came out as


def gather(
    project: Project,
    publication: Publication,
    plan: TargetPlan,
    manifest: Manifest,
    found: Licence | None,
    emit: Emit,
    *,
    dry: bool,
) -> tuple[list[File], str, list[str], Manifest]:
    """The files, the card, the notes, and the manifest that the attestation is about. Raises BuildError."""
    model = plan.target.model
    if plan.gguf:
        made = [_joined(project, plan, found, emit, dry=dry)]
    else:
        types = publication.gguf
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
            manifest=manifest,
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
    said = ", ".join(publication.gguf) or manifest.settings["gguf"]
    about = replace(manifest, files=entries, settings={**manifest.settings, "gguf": said})
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
    source = plan if wanted == EXACT else _source(project, str(publication.source))
    model, about = plan.target.model, _about(plan, found)
    gguf = gguf_of(project, source, wanted, about, publication.calibrated, emit, dry=dry)
    if gguf is not None:
        size, usual, mix = gguf.blob.size, gguf.usual, mix_in_words(wanted, gguf.mix, gguf.bits_per_weight)
    else:
        size, usual, mix = outlook(project, source, wanted, publication.calibrated)
    name = _name(plan, wanted, usual)
    if gguf is None:
        return _Made(name, size, None, {}, (), mix)
    results: dict[str, Result] = {}
    if model.suites:
        one = measured_gguf(project, source, gguf.blob)
        results = one if dry else evaluate_gguf(project, source, gguf.blob, name, emit)
    if wanted == EXACT:  # what llama.cpp does not measure was measured of the very same weights
        own = measured(project, plan)
        results |= {suite: own[suite] for suite in own if project.spec.suites[suite].kind in UNSCORED}
    return _Made(name, size, gguf, results, tuple(missed(model.require, results)), mix)


def _joined(project: Project, plan: TargetPlan, found: Licence | None, emit: Emit, *, dry: bool) -> _Made:
    """The one file of a target that is a GGUF already, and was measured as a target."""
    about = _about(plan, found)
    gguf = known_joined(project, plan, about) if dry else join(project, plan, about, emit)
    size, usual = (gguf.blob.size, gguf.usual) if gguf else unjoined(plan)
    results = measured(project, plan)
    name = _name(plan, wanted_type(plan), usual)
    return _Made(name, size, gguf, results, tuple(missed(plan.target.model.require, results)), "")


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
    keys |= {each.gguf.importance for each in made if each.gguf and each.gguf.importance}
    for each in made:
        if each.gguf and not plan.gguf:
            source = plan if each.gguf.wanted == EXACT else project.plan.targets[str(publication.source)]
            assert isinstance(source, TargetPlan)  # the file was made of it
            keys |= keys_of_gguf(project, source, each.gguf.blob)
    project.cache.put(PUBLISHED, publication.name, " ".join(sorted(keys)).encode())
    register(project)


def _modelfile(to: OllamaPlace, name: str, system: str | None, found: Licence | None) -> File:
    try:
        text = ollama.modelfile(name, system, found.name if found else None)
    except ValueError as error:
        raise PlaceRefused(to=to, what=str(error)) from error
    return bundle.of_bytes(ollama.MODELFILE, text)


def _source(project: Project, name: str) -> TargetPlan:
    plan = project.plan.targets[name]
    if not isinstance(plan, TargetPlan) or not project.is_built(name):
        raise NotBuilt(target=name)
    return plan


def _files(project: Project, made: list[_Made], emit: Emit) -> list[File]:
    there = [
        (each.name, each.gguf.blob, blobs.path(project.store, each.gguf.blob.digest))
        for each in made
        if each.gguf
    ]
    unknown = [File(each.name, each.size, "", "", b"") for each in made if each.gguf is None]
    return [*bundle.of_blobs(there, project.cache, emit), *unknown]
