"""Trains an adapter that is declared with `train`, once for its key, and keeps it in the store.

A run that is interrupted goes on from its last checkpoint. Checkpoints are blobs under keys of their own, and
gc frees them when the adapter is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.build.sharing import fetch_manifests
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.console.interrupt import meaning
from builder.console.words import count
from builder.errors import BuildError, SourceChanged
from builder.keys import Digest
from builder.project.hashing import digest
from builder.project.project import Project
from builder.project.roots import register
from builder.project.toolchain import made_by, now
from builder.project.watch import show_trained
from builder.sources.facts import Unknown
from builder.sources.trained import Recipe, recipe_of
from builder.spec.training import TRAIN, VALID, Training
from builder.spec.types import Adapter, GgufSource
from builder.store import blobs, records, tmp
from builder.store.holdings import usable_record, whole_manifest
from builder.store.locks import acquire, build_session
from builder.store.types import FileEntry, Manifest, Record
from builder.training import process
from builder.training.curves import ADAPTER, CONFIG, CURVE, Curve, curve_from, summary
from builder.training.request import Request


class BaseNotReady(BuildError):
    """adapter:{adapter} is trained on base:{base}, which {what}."""

    exit_code = 2
    hint = "`doit base:{base}` prepares it."


def train_adapter(project: Project, adapter: Adapter, training: Training, emit: Emit) -> Manifest:
    """The manifest of a trained adapter, trained if the store has none. Its view is shown.

    Raises SourceError, SourceChanged, BaseNotReady, and what training raises.
    """
    for name in (TRAIN, VALID):
        if (path := training.data / name).is_file():
            digest(project, path, emit)
    recipe = recipe_of(project.sources, adapter, training)
    if isinstance(recipe, Unknown):
        if recipe.error is not None:
            raise recipe.error
        raise BaseNotReady(adapter=adapter.name, base=adapter.base, what=recipe.reason)
    store = project.store
    steps = [recipe.checkpoint_key(step) for step in training.checkpoints]
    with build_session(store, [recipe.key, *steps]):
        register(project)
        fetch_manifests(project, [recipe.key], emit)
        with acquire(store, [recipe.key], waiting(f"adapter:{adapter.name}", emit)):
            manifest = whole_manifest(store, recipe.key)
            if manifest is None:
                manifest = _train(project, adapter, training, recipe, emit)
            show_trained(store, manifest)
    project.forget_plan()
    return manifest


def _train(project: Project, adapter: Adapter, training: Training, recipe: Recipe, emit: Emit) -> Manifest:
    store, name, started = project.store, f"adapter:{adapter.name}", time.perf_counter()
    resume = _last_checkpoint(project, training, recipe)
    emit(Note(f"{name}: training on {adapter.base}, {count(training.iterations, 'step')}"))
    with tmp.new_folder(store) as scratch:
        request = Request(
            adapter.name,
            training=_with_copies(adapter, training, recipe, scratch),
            base=_folder(project, adapter),
            dequantize=project.spec.bases[adapter.base].dequantize,
            trust_remote_code=project.spec.bases[adapter.base].trust_remote_code,
            out=scratch,
            resume=resume,
            memory=project.spec.build.memory,
        )

        def keep(step: int, file: Path) -> None:
            blob = blobs.ingest_file(store, file)
            how: dict[str, str | int] = {"adapter": adapter.name, "step": step, "made": now()}
            records.write(store, Record(recipe.checkpoint_key(step), "checkpoint", blob, how))

        with meaning("The same command goes on from the last checkpoint."):
            said = process.run(request, emit, keep)
        again = recipe_of(project.sources, adapter, training)
        if isinstance(again, Unknown) or again.inputs["base"] != recipe.inputs["base"]:
            raise SourceChanged(source=f"base:{adapter.base}", path=request.base)
        curve = curve_from((scratch / CURVE).read_text(encoding="utf-8"))
        names = (ADAPTER, CONFIG, CURVE)
        entries = tuple(FileEntry(each, blobs.ingest_file(store, scratch / each)) for each in names)
    manifest = Manifest(
        recipe.key,
        "adapter",
        adapter.name,
        now(),
        entries,
        inputs=dict(recipe.inputs),
        settings=dict(recipe.settings),
        toolchain={**made_by(), "blas": said["blas"], "precision": said["precision"]},
        measures=_measures(curve, said, time.perf_counter() - started),
    )
    manifest = records.write_manifest(store, manifest)
    for line in summary(curve, training.keep, said["fused"]):
        emit(Note(f"{name}: {line}"))
    return manifest


def _measures(curve: Curve, said: Mapping[str, Any], seconds: float) -> dict[str, float | int]:
    best = {"best_step": curve.best} if curve.best is not None else {}
    losses = {"train_loss": curve.train[-1][1], **({"valid_loss": curve.valid[-1][1]} if curve.valid else {})}
    return {
        "steps": curve.steps,
        **best,
        **losses,
        "seconds": round(seconds, 1),
        "peak_memory": int(said["peak"]),
        **({"fused_loss": said["fused"]} if said["fused"] is not None else {}),
    }


def _last_checkpoint(project: Project, training: Training, recipe: Recipe) -> Path | None:
    """The file of the newest checkpoint that is whole, looked for from the end."""
    for step in reversed(training.checkpoints):
        record = usable_record(project.store, recipe.checkpoint_key(step))
        if record is not None:
            return blobs.path(project.store, record.blob.digest)
    return None


def _with_copies(adapter: Adapter, training: Training, recipe: Recipe, scratch: Path) -> Training:
    """The settings with a copy of the rows, which nobody changes meanwhile. Raises SourceChanged."""
    from dataclasses import replace

    for name in (TRAIN, VALID):
        if name not in recipe.inputs:
            continue
        copy = scratch / name
        shutil.copyfile(training.data / name, copy)
        found: Digest = blobs.hash_file(copy).digest
        if found != recipe.inputs[name]:
            raise SourceChanged(source=f"adapter.{adapter.name}.train", path=training.data / name)
    return replace(training, data=scratch)


def _folder(project: Project, adapter: Adapter) -> Path:
    """The folder of the base; the view of an import is made if it is not there."""
    from builder.project.watch import show_import

    base = project.spec.bases[adapter.base]
    if isinstance(base.source, GgufSource):
        manifest = project.sources.imported(base)
        if manifest is None:
            what = "has not been imported yet"
            raise BaseNotReady(adapter=adapter.name, base=base.name, what=what)
        return show_import(project.store, manifest)
    return project.sources.base_directory(base)
