"""What a learned quantizer wrote: checked, cut by block into canonical shards, and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.keys import Key
from builder.plan.changes import inputs_of, settings_of
from builder.plan.layout import shard_name
from builder.plan.types import CONFIG, TargetPlan
from builder.project.project import Project
from builder.project.toolchain import made_by, now
from builder.sources.contents import INDEX
from builder.spec.types import Quantization
from builder.store import blobs
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


def step_key(plan: TargetPlan) -> Key:
    """The key of the step that makes a learned target."""
    assert plan.learned is not None
    return plan.learned


def method_of(plan: TargetPlan) -> str:
    learned = plan.target.variant.learned
    assert learned is not None
    return learned.method


def ingest_output(project: Project, plan: TargetPlan, source: Path, out: Path) -> Manifest:
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
    measures = {"bits_per_weight": round(8 * nbytes / count, 4), "shard_bytes": nbytes}
    if (whole := survival.total(lost)) is not None:
        measures["quantization_error"] = float(f"{whole.error:.4g}")
    return Manifest(
        step_key(plan),
        "learned",
        plan.name,
        now(),
        tuple(sorted(entries, key=lambda entry: entry.name)),
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

    method = method_of(plan)

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
