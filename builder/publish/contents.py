"""From a declared publication to the files that it is: the gate, the card, the attestation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from builder.build.attestation import statement
from builder.console.events import Emit
from builder.evaluate.results import Result, missed
from builder.evaluate.run import measured
from builder.plan.types import TargetPlan
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.publish import benchmarks, bundle, card, evidence, ggufs
from builder.publish.bundle import ATTESTATION, CARD, Bundle, File
from builder.publish.card import PLOT, Evidence
from builder.publish.errors import PublishRefused
from builder.publish.front import Facts
from builder.spec.destinations import EXACT, HubPlace, Publication
from builder.spec.publishing import PRODUCTION
from builder.store import blobs, records, views
from builder.store.holdings import holds
from builder.store.types import Manifest


def planned(project: Project, publication: Publication) -> TargetPlan:
    """The target that goes out, as it is built now. Raises NotBuilt, PublishRefused."""
    name = publication.target
    if name == PRODUCTION:
        name = views.current_name(project.store.models / PRODUCTION) or ""
        shown = views.current_key(project.store.models / PRODUCTION)
        hint = "`doit release:production` releases the declared target."
        if name not in project.plan.targets:
            raise PublishRefused(target=PRODUCTION, what="nothing is released", hint=hint)
        if project.keys.get(name) != shown:
            what = f"it shows another build of {name} than what artifacts.toml declares now"
            raise PublishRefused(target=PRODUCTION, what=what, hint=hint)
    plan = project.plan.targets[name]
    if not isinstance(plan, TargetPlan):
        raise NotBuilt(target=name)
    return plan


def gather(project: Project, publication: Publication, emit: Emit, *, dry: bool = False) -> Bundle:
    """All files of a publication. A `dry` run makes no GGUF and measures none.

    Raises NotBuilt, and PublishRefused for a target that misses something.
    """
    plan = planned(project, publication)
    is_sent = not publication.gguf or EXACT in publication.gguf  # else only its model's other weights are
    manifest = _manifest(project, plan) if is_sent else None
    model = plan.target.model
    known = measured(project, plan)
    short = missed(model.require, known) if is_sent else []
    if short and publication.override is None:
        raise PublishRefused(target=plan.name, what="; ".join(map(str, short)))
    base = project.spec.bases[model.base]
    found = evidence.licence(project, publication, base)
    counted, lacking = benchmarks.entries(publication.benchmarks, known)
    if publication.gguf or plan.gguf:
        files, text, said, about = ggufs.gather(project, publication, plan, manifest, found, emit, dry=dry)
        named = plan.name if is_sent else model.name  # of other weights of the model
        return _bundle(named, [*files, *counted], text, about, [evidence.warning(found), *said, *lacking])
    assert manifest is not None
    files = bundle.of_blobs(
        [
            (e.name, e.blob, blobs.path(project.store, e.blob.digest))
            for e in manifest.files
            if e.name != CARD
        ],
        project.cache,
        emit,
    )
    plot, drawn = _plot(project, plan, known)
    to = publication.to
    address = to.repo if isinstance(to, HubPlace) else "."
    text = card.render(
        Evidence(
            facts=Facts(
                name=to.repo.partition("/")[2] if isinstance(to, HubPlace) else plan.name,
                library="mlx",
                base=evidence.base_repository(publication, base),
                adapter=model.adapter,
                bits=str(manifest.settings.get("bits", "")),
                licence=found,
                datasets=publication.datasets,
            ),
            manifest=manifest,
            base=base,
            require=model.require,
            results=known,
            address=address,
            system=evidence.system_prompt(project, model),
            override=publication.override,
            plot=plot,
        )
    )
    notes: list[str | None] = [evidence.warning(found)]
    if short:
        notes.append(
            f"{plan.name} misses its requirements, and the card says so: {'; '.join(map(str, short))}"
        )
    elif not model.require:
        notes.append(f"{plan.name} is published unmeasured: [model.{model.name}.require] names no condition")
    return _bundle(plan.name, [*files, *drawn, *counted], text, manifest, [*notes, *lacking])


def _manifest(project: Project, plan: TargetPlan) -> Manifest:
    manifest = records.read_manifest(project.store, plan.key)
    if manifest is None or not holds(project.store, manifest):
        raise NotBuilt(target=plan.name)
    return manifest


def _bundle(
    name: str, files: list[File], text: str, manifest: Manifest, notes: Sequence[str | None]
) -> Bundle:
    whole = [*files, _attestation(manifest, files), bundle.of_bytes(CARD, text.encode())]
    ordered = tuple(sorted(whole, key=lambda file: file.name))
    return Bundle(name, ordered, text, tuple(note for note in notes if note))


def _attestation(manifest: Manifest, files: list[File]) -> File:
    sha256 = {file.name: file.sha256 for file in files}
    text = json.dumps(statement(manifest, sha256), indent=1) + "\n"
    return bundle.of_bytes(ATTESTATION, text.encode())


def _plot(project: Project, plan: TargetPlan, known: Mapping[str, Result]) -> tuple[str, list[File]]:
    """The plot of quality by size, in words and as a file, where matplotlib and two measured targets are."""
    from builder.report import drawing
    from builder.report.collect import collect
    from builder.report.size_plot import size_plot

    if not known or not drawing.available():
        return "", []
    plot = size_plot(collect(project, [plan.target.model.name]).models[0])
    return (plot.text, [bundle.of_bytes(PLOT, plot.file.encode())]) if plot else ("", [])
