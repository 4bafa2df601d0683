"""Whole-model steps: a learned quantizer runs on a target that is on disk, its output is stored by block.

The step runs in a process of its own, with the user's home and the network out of its reach. Its manifest is
its only record: whatever dies in between leaves left-overs in tmp/, and the step runs again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from builder.build import card
from builder.build.learned_output import StepFailed, ingest_output, step_key
from builder.build.one_pass import Built, copy_aux, make_config
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.console.interrupt import meaning
from builder.console.words import count, listed
from builder.engine.outcome import OUTCOME, Outcome
from builder.engine.progress import parsed
from builder.engine.quantizer import LearnedRequest
from builder.errors import BuildError, SourceChanged
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import CONFIG, TargetPlan
from builder.project.preflight import check_whole
from builder.project.project import Project
from builder.project.roots import keys_of, register
from builder.project.toolchain import made_by, now
from builder.project.watch import Shown
from builder.spec.quantizers import Learned
from builder.store import blobs, records, tmp, views
from builder.store.holdings import usable_record, whole_manifest
from builder.store.locks import acquire, build_session
from builder.store.types import FileEntry, Manifest, Record


class SourceNotBuilt(BuildError):
    """{target} is made from {source}, and {source} is not on disk."""

    exit_code = 2
    hint = "`doit model:{source}` builds it."


def build_learned(project: Project, plan: TargetPlan, emit: Emit) -> Built:
    """Make one learned target. Does nothing that is in the store. Raises BuildError."""
    started = time.perf_counter()
    store = project.store
    read = sources_of(project, plan)
    source = read[0]
    with build_session(store, [*keys_of(plan), *(key for each in read for key in keys_of(each))]):
        register(project)
        with acquire(store, [step_key(plan)], waiting(plan.name, emit)):
            step = whole_manifest(store, step_key(plan))
            made = step is None and whole_manifest(store, plan.key) is None
            if made:
                check_whole(project, plan, read)
                emit(Note(f"{plan.name}: {_learned(plan).method} on {listed([p.name for p in read], 'and')}"))
                step = _run(project, plan, read, emit)
        manifest = _finish(project, plan, source, step, emit)
        view = store.models / plan.name
    files = sum(entry.name.endswith(".safetensors") for entry in manifest.files)
    bits = float(manifest.measures["bits_per_weight"])
    seconds = time.perf_counter() - started
    return Built(plan.name, view, manifest.size, bits, files if made else 0, 0 if made else files, seconds)


def sources_of(project: Project, plan: TargetPlan) -> list[TargetPlan]:
    """The targets that a learned target reads: the unquantized one first."""
    found = [project.plan.targets[name] for name in plan.reads]
    return [source for source in found if isinstance(source, TargetPlan)]  # it is planned from them


def _learned(plan: TargetPlan) -> Learned:
    learned = plan.target.variant.learned
    assert learned is not None
    return learned


def _run(project: Project, plan: TargetPlan, read: Sequence[TargetPlan], emit: Emit) -> Manifest:
    """Run the method on copies of what it reads that nobody else knows of; a manifest of its output."""
    store = project.store
    held = [(source, whole_manifest(store, source.key)) for source in read]
    with tmp.new_folder(store) as scratch:
        shown: list[Shown] = []
        for name, (source, manifest) in zip(("source", "start"), held, strict=False):
            if manifest is None:
                raise SourceNotBuilt(target=plan.name, source=source.name)
            views.materialize(store, scratch / name, manifest)  # links or clones where the disk has them
            shown.append(Shown(store, scratch / name, manifest))
        _call(project, plan, scratch / "source", scratch, emit)
        for each, source in zip(shown, read, strict=True):
            if not each.is_shown:
                raise SourceChanged(source=f"model:{source.name}", path=each.folder)
        made = ingest_output(project, plan, scratch / "source", scratch / "out")
        if plan.start is not None:
            made = _with_outcome(plan, made, scratch / "out", emit)
    return records.write_manifest(store, made)


def _with_outcome(plan: TargetPlan, made: Manifest, out: Path, emit: Emit) -> Manifest:
    """The manifest with what tuning came to, which is told too."""
    assert plan.start is not None
    found = Outcome(**json.loads((out / OUTCOME).read_text()))
    kl = f"KL on {count(found.tokens, 'other token')} {found.before:.4g} -> {found.after:.4g}"
    kept = "" if found.better else f": not less, so the scales and biases of {plan.start.name} are kept"
    emit(Note(f"{plan.name}: {kl}{kept}"))
    measures = {**made.measures, "start_kl": found.before, "tuned_kl": min(found.before, found.after)}
    return replace(made, measures=measures)


def _finish(
    project: Project, plan: TargetPlan, source: TargetPlan, step: Manifest | None, emit: Emit
) -> Manifest:
    """The target's manifest and its view. `step`: what the method made; None if the target is whole."""
    store = project.store
    manifest = whole_manifest(store, plan.key)
    if manifest is None:
        assert step is not None
        manifest = _assemble(project, plan, source, step, emit)
    else:
        records.mark_used(store, plan.key)
    view = store.models / plan.name
    if not views.is_current(store, view, manifest):
        base = project.spec.bases[plan.target.model.base]
        views.materialize(store, view, manifest, card.render(manifest, base, plan.name))
    return manifest


def _assemble(project: Project, plan: TargetPlan, source: TargetPlan, step: Manifest, emit: Emit) -> Manifest:
    """config.json and the target's manifest, from what the step made and what the base brings."""
    store, on_wait = project.store, waiting(plan.name, emit)
    if usable_record(store, plan.config) is None and usable_record(store, source.config) is None:
        make_config(project, source, emit)
    with acquire(store, [plan.config], on_wait):
        config = usable_record(store, plan.config)
        if config is None:
            blob = blobs.ingest(store, [_config(project, source, step)])
            config = Record(plan.config, "config", blob, made_by())
            records.write(store, config)
    copy_aux(project, plan)
    with acquire(store, [plan.key], on_wait):
        made = [entry for entry in step.files if entry.name != CONFIG]
        entries = sorted(
            [*made, FileEntry(CONFIG, config.blob), *plan.base.aux], key=lambda entry: entry.name
        )
        manifest = Manifest(
            plan.key,
            "target",
            plan.name,
            now(),
            tuple(entries),
            inputs_of(plan),
            settings_of(plan),
            made_by(),
            step.measures,
        )
        return records.write_manifest(store, manifest)


def _config(project: Project, source: TargetPlan, step: Manifest) -> bytes:
    """config.json of the source, with the quantization that the method chose."""
    record = usable_record(project.store, source.config)
    learned = next(entry.blob for entry in step.files if entry.name == CONFIG)
    assert record is not None  # the session of this build keeps it
    config = json.loads(blobs.read(project.store, record.blob))
    made = json.loads(blobs.read(project.store, learned))
    chosen = {name: made[name] for name in ("quantization", "quantization_config") if name in made}
    return json.dumps(dict(sorted({**config, **chosen}.items())), indent=4).encode()


def _call(project: Project, plan: TargetPlan, source: Path, scratch: Path, emit: Emit) -> None:
    """Run the method with `scratch` as its home and working folder. Raises StepFailed."""
    learned, how = _learned(plan), plan.target.variant.quantization
    text = _calibration(plan, learned, scratch)
    settings = {k: v for k, v in asdict(learned).items() if k not in ("source", "start", "calibration")}
    request = LearnedRequest(
        source=str(source.resolve()),
        start=str(scratch.resolve() / "start") if plan.start else None,
        out=str(scratch.resolve() / "out"),
        calibration=str(text),
        calibration_name=str(learned.calibration),
        trust_remote_code=project.spec.bases[plan.target.model.base].trust_remote_code,
        bits=how.bits if how else 0,
        group_size=how.group_size if how else 0,
        **settings,
    )
    (scratch / "request.json").write_text(request.to_text())
    home = {name: str(scratch.resolve()) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    environment = {**os.environ, **home, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    lost = f"What {learned.method} had done of {plan.name} is lost, and the next run begins it again."
    with meaning(f"{lost} What was built before is kept."):
        code, said = _listened(scratch, environment, plan.name, emit)
    if code != 0:
        what = said[:300] if code > 0 else f"killed by signal {-code}"
        raise StepFailed(target=plan.name, method=learned.method, what=what)


def _listened(folder: Path, environment: Mapping[str, str], target: str, emit: Emit) -> tuple[int, str]:
    """Runs the method in its own process and tells its progress. Returns exit code and last other line."""
    said = "no message"
    with subprocess.Popen(
        [sys.executable, "-m", "builder.engine.quantizer", "request.json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if (step := parsed(line)) is not None:
                    emit(Learning(target, step.part, step.done, step.total, step.loss))
                elif line.strip():
                    said = line.strip()
        except BaseException:  # for example Ctrl-C: the method must end before its pipe is closed
            process.kill()
            raise
    return process.returncode, said


def _calibration(plan: TargetPlan, learned: Learned, scratch: Path) -> Path:
    """A copy of the text, which nobody changes while the method reads it. Raises SourceChanged."""
    copy = scratch.resolve() / f"calibration{learned.calibration.suffix}"
    shutil.copyfile(learned.calibration, copy)
    if blobs.hash_file(copy).digest != plan.calibration:
        raise SourceChanged(source=f"variant.{plan.target.variant.name}", path=learned.calibration)
    return copy
