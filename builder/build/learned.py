"""Whole-model steps: a learned quantizer runs on a target that is on disk, its output is stored by block.

The step runs in a process of its own, with the user's home and the network out of its reach. Its manifest is
its only record: whatever dies in between leaves left-overs in tmp/, and the step runs again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from builder.build import card
from builder.build.one_pass import Built
from builder.console.events import Emit, Note
from builder.engine.quantizer import LearnedRequest
from builder.errors import BuildError
from builder.plan.changes import inputs_of, settings_of
from builder.plan.planning import shard_name
from builder.plan.types import CONFIG, TargetPlan
from builder.project.project import Project
from builder.project.roots import register
from builder.project.state import holds
from builder.project.toolchain import made_by, now
from builder.project.watch import SourceChanged
from builder.sources.base import INDEX
from builder.spec.types import Learned, Quantization
from builder.store import blobs, records, tmp, views
from builder.store.locks import acquire, build_session
from builder.store.types import FileEntry, Manifest
from builder.weights import shards, survival
from builder.weights.structure import block_of

if TYPE_CHECKING:
    import mlx.core as mx


_LEAST_COSINE = 0.1  # between a weight and what stands for it: 0 by chance; gptq at 2 bits was seen at 0.41


class StepFailed(BuildError):
    """{target}: method "{method}" failed: {what}"""

    exit_code = 2
    hint = "Nothing was kept."


class SourceNotBuilt(BuildError):
    """{target} is made from {source}, and {source} is not on disk."""

    exit_code = 2
    hint = "`doit model:{source}` builds it."


def build_learned(project: Project, plan: TargetPlan, emit: Emit) -> Built:
    """Make one learned target. Does nothing that is in the store. Raises BuildError."""
    started = time.perf_counter()
    store = project.store
    source = project.plan.targets[str(plan.needs)]
    assert isinstance(source, TargetPlan)
    with build_session(store, [plan.key, *plan.keys, source.key, *source.keys]):
        register(project)
        with acquire(store, [plan.key]):
            manifest = records.read_manifest(store, plan.key)
            made = manifest is None or not holds(store, manifest)
            if manifest is None or made:
                if views.current_key(store.models / source.name) != source.key:
                    raise SourceNotBuilt(target=plan.name, source=source.name)
                emit(Note(f"{plan.name}: {_learned(plan).method} on {source.name}"))
                manifest = _run(project, plan, store.models / source.name)
        view = store.models / plan.name
        if not views.is_current(store, view, manifest):
            base = project.spec.bases[plan.target.model.base]
            views.materialize(store, view, manifest, card.render(manifest, base))
    count = sum(entry.name.endswith(".safetensors") for entry in manifest.files)
    bits = float(manifest.measures["bits_per_weight"])
    seconds = time.perf_counter() - started
    return Built(plan.name, view, manifest.size, bits, count if made else 0, 0 if made else count, seconds)


def _learned(plan: TargetPlan) -> Learned:
    learned = plan.target.variant.learned
    assert learned is not None
    return learned


def _run(project: Project, plan: TargetPlan, source: Path) -> Manifest:
    with tmp.new_folder(project.store) as scratch:
        _call(project, plan, source, scratch)
        manifest = _ingest(project, plan, source, scratch / "out")
    records.write_manifest(project.store, manifest)
    return manifest


def _call(project: Project, plan: TargetPlan, source: Path, scratch: Path) -> None:
    """Run the method with `scratch` as its home and working folder. Raises StepFailed."""
    learned, how = _learned(plan), plan.target.variant.quantization
    assert how is not None
    text = _calibration(plan, learned, scratch)
    settings = {k: v for k, v in asdict(learned).items() if k not in ("source", "calibration")}
    request = LearnedRequest(
        source=str(source.resolve()),
        out=str(scratch.resolve() / "out"),
        calibration=str(text),
        calibration_name=str(learned.calibration),
        trust_remote_code=project.spec.bases[plan.target.model.base].trust_remote_code,
        bits=how.bits,
        group_size=how.group_size,
        **settings,
    )
    (scratch / "request.json").write_text(request.to_text())
    home = {name: str(scratch.resolve()) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "builder.engine.quantizer", "request.json"],
        cwd=scratch,
        env={**os.environ, **home, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        what = last[-1][:300] if done.returncode > 0 else f"killed by signal {-done.returncode}"
        raise StepFailed(target=plan.name, method=learned.method, what=what)


def _calibration(plan: TargetPlan, learned: Learned, scratch: Path) -> Path:
    """A copy of the text, which nobody changes while the method reads it. Raises SourceChanged."""
    copy = scratch.resolve() / f"calibration{learned.calibration.suffix}"
    shutil.copyfile(learned.calibration, copy)
    if blobs.hash_file(copy).digest != plan.calibration:
        raise SourceChanged(source=f"variant.{plan.target.variant.name}", path=learned.calibration)
    return copy


def _ingest(project: Project, plan: TargetPlan, source: Path, out: Path) -> Manifest:
    """The method's output by block, in our canonical shards, one block in memory at a time.

    Raises StepFailed for what is no quantization of its source.
    """
    tensors, originals = _tensors(out), _tensors(source)
    nbytes = sum(array.nbytes for array in tensors.values())
    entries: list[FileEntry] = []
    weight_map: dict[str, str] = {}
    lost: list[survival.Row] = []
    for name, block in _blocks(plan, tensors):
        weight_map |= dict.fromkeys(block, name)
        shard = _raw(block)
        del block
        lost += _losses(plan, shard, {tensor: originals.pop(tensor, None) for tensor in shard})
        entries.append(FileEntry(name, blobs.ingest(project.store, shards.encode(shard))))
    count = plan.base.structure.parameter_count
    index = {
        "metadata": {"total_size": nbytes, "total_parameters": count},
        "weight_map": dict(sorted(weight_map.items())),
    }
    entries.append(FileEntry(INDEX, blobs.ingest(project.store, [json.dumps(index, indent=4).encode()])))
    entries.append(FileEntry(CONFIG, blobs.ingest_file(project.store, out / CONFIG)))
    for entry in plan.base.aux:
        if not blobs.has(project.store, entry.blob):
            blobs.ingest_file(project.store, project.store.models / str(plan.needs) / entry.name)
    files = sorted([*entries, *plan.base.aux], key=lambda entry: entry.name)
    measures = {"bits_per_weight": round(8 * nbytes / count, 4), "shard_bytes": nbytes}
    if (whole := survival.total(lost)) is not None:
        measures["quantization_error"] = float(f"{whole.error:.4g}")
    return Manifest(
        plan.key,
        "target",
        plan.name,
        now(),
        tuple(files),
        inputs_of(plan),
        settings_of(plan),
        made_by(),
        measures,
    )


def _tensors(folder: Path) -> dict[str, mx.array]:
    """All weights of a model's folder, lazy."""
    import mlx.core as mx

    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


def _losses(
    plan: TargetPlan, shard: Mapping[str, shards.RawTensor], originals: Mapping[str, mx.array | None]
) -> Iterator[survival.Row]:
    """What quantizing lost of each path, over a sample of its rows. Raises StepFailed for nonsense.

    Not of awq, which moves scales from one weight into another. gptq moves weights far where the text's
    activations do not see it, so what counts as nonsense is not the size of the error but the direction.
    """
    import mlx.core as mx

    from builder.engine.survival import finite, measure

    method = _learned(plan).method

    def fail(what: str) -> StepFailed:
        return StepFailed(target=plan.name, method=method, what=what)

    for name, tensor in shard.items():
        if not finite(tensor):
            raise fail(f'it made NaN or infinity of "{name}"')
    for name in shard:
        path, original = name.removesuffix(".scales"), originals.get(f"{name.removesuffix('.scales')}.weight")
        if path == name or original is None:
            continue
        columns, words = original.shape[-1], shard[f"{path}.weight"].shape[-1]
        how = Quantization(32 * words // columns, columns // shard[name].shape[-1])
        found = measure(path, mx.zeros_like(original), original, shard, how)
        if found.weight and found.kept < _LEAST_COSINE * math.sqrt(found.weight * found.remains):
            raise fail(f'what it made of "{path}" has nothing in common with the weight')
        if method != "awq":
            yield (path, found.weight, 0.0, found.error, 0.0, found.error)


def _blocks(plan: TargetPlan, tensors: dict[str, mx.array]) -> Iterator[tuple[str, dict[str, mx.array]]]:
    """(shard name, its tensors), in the order of the model's blocks; `tensors` is used up."""
    order = {block: index for index, block in enumerate(plan.base.structure.blocks)}
    by_block: dict[str, dict[str, mx.array]] = {}
    for name in sorted(tensors, key=lambda name: (order.get(block_of(name), len(order)), name)):
        by_block.setdefault(block_of(name), {})[name] = tensors.pop(name)
    count = len(by_block)
    for number, block in enumerate(list(by_block), start=1):
        yield shard_name(number, count), by_block.pop(block)


def _raw(block: dict[str, mx.array]) -> dict[str, shards.RawTensor]:
    import mlx.core as mx

    from builder.engine.arrays import raw

    mx.eval(block)
    return {name: raw(array) for name, array in block.items()}
