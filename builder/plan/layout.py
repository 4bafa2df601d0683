"""What a variant makes of a base: the shards, their tensors and sizes. The adapter does not matter. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.keys import Digest, make_key
from builder.plan.quantization import resolve
from builder.sources.facts import BaseFacts
from builder.spec.types import Quantization, Target
from builder.weights import overrides
from builder.weights.shards import encoded_size
from builder.weights.structure import TensorSpec, block_of, shard_tensors


@dataclass(frozen=True)
class BlockLayout:
    block: str
    file: str
    tensors: tuple[TensorSpec, ...]
    size: int
    layout: Digest  # of the tensors' names, types and shapes
    quantization: Digest


@dataclass(frozen=True)
class Layout:
    """What a variant makes of a base. The adapter does not matter for this."""

    dtype: str | None
    quantization: Mapping[str, Quantization]
    skipped: tuple[str, ...]
    idle: tuple[overrides.Idle, ...]
    blocks: tuple[BlockLayout, ...]


def layout_of(target: Target, base: BaseFacts) -> Layout:
    structure, variant = base.structure, target.variant
    dtype = variant.dtype or structure.default_dtype
    quantization, skipped = resolve(structure, variant)
    by_block: dict[str, list[object]] = {}
    for path, how in sorted(quantization.items()):
        by_block.setdefault(block_of(f"{path}.weight"), []).append([path, how.bits, how.group_size, how.mode])
    count = len(structure.blocks)
    blocks = []
    for index, (block, parameters) in enumerate(structure.by_block.items(), start=1):
        tensors = shard_tensors(parameters, dtype, quantization)
        quantized = Digest(make_key("quantization/1", by_block.get(block, [])))
        layout = Digest(make_key("tensors/1", [[t.name, t.dtype, t.shape] for t in tensors]))
        size = encoded_size(tensors)
        blocks.append(BlockLayout(block, shard_name(index, count), tensors, size, layout, quantized))
    idle = overrides.idle(structure, variant) if variant.is_quantized else ()
    return Layout(dtype, quantization, skipped, idle, tuple(blocks))


def shard_name(index: int, count: int) -> str:
    """The name of a shard as mlx_lm.utils.save_model chooses it. `index` counts from 1."""
    return f"model-{index:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
