"""Leaves experts out of a lazy model, of its adapter, and of the bytes of a block.

Rounding goes along the inputs of a weight, and experts lie along another axis. So the bytes of an expert are
the same whether it is cut out before rounding or afterwards. An adapter is fused expert by expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.expert_places import NotPrunable, build, with_setting
from builder.engine.loading import LoadedAdapter
from builder.weights import lora
from builder.weights.experts import Pruned
from builder.weights.shards import RawTensor


def prune(model: nn.Module, config: dict[str, Any], pruned: Pruned) -> tuple[nn.Module, dict[str, Any]]:
    """The model without these experts, lazy, and its config. Raises NotPrunable."""
    config = with_setting(config, pruned.setting, pruned.keep)
    left = [(name, _cut(name, array, pruned)) for name, array in tree_flatten(model.parameters())]
    try:
        made = build(config)
        made.load_weights(left, strict=True)
    except Exception as error:  # a model's code may raise anything
        raise NotPrunable(model_type=config.get("model_type", "?"), what=one_line(error)) from error
    made.eval()
    return made, config


def prune_adapter(adapter: LoadedAdapter | None, pruned: Pruned) -> LoadedAdapter | None:
    """The adapter for the model without these experts, lazy."""
    if adapter is None:
        return None
    full = adapter.fine_tune_type == "full"
    return replace(
        adapter,
        tensors={n: _cut(n, array, pruned, lora_part=not full) for n, array in adapter.tensors.items()},
    )


def prune_shard(shard: Mapping[str, RawTensor], pruned: Pruned) -> dict[str, RawTensor]:
    """The bytes of a block without these experts, quantized or not."""
    return {name: _cut_bytes(name, tensor, pruned) for name, tensor in shard.items()}


def _cut(name: str, array: mx.array, pruned: Pruned, *, lora_part: bool = False) -> mx.array:
    path, _, part = name.rpartition(".")
    if lora_part and part in lora.PARTS:
        return _cut_lora(f"{path}.weight", part, array, pruned)
    axis = pruned.places.get(name, 0)
    kept = pruned.indices(name, array.shape[axis] if array.ndim else 0)
    return _taken(array, kept, axis)


def _taken(array: mx.array, kept: tuple[int, ...] | None, axis: int) -> mx.array:
    return array if kept is None else mx.take(array, mx.array(kept), axis)


def _cut_lora(weight: str, part: str, array: mx.array, pruned: Pruned) -> mx.array:
    """A stack has pairs [experts, ...]. A router has lora_a [in, rank], lora_b [rank, experts], m."""
    if weight not in pruned.places or (array.ndim == 2 and part == "lora_a"):
        return array
    axis = 1 if array.ndim == 2 else 0
    return _taken(array, pruned.indices(weight, array.shape[axis]), axis)


def _cut_bytes(name: str, tensor: RawTensor, pruned: Pruned) -> RawTensor:
    """Scales and biases of a weight lose what the weight loses."""
    path, _, leaf = name.rpartition(".")
    of = f"{path}.weight" if leaf in ("scales", "biases") else name
    axis = pruned.places.get(of, 0)
    kept = pruned.indices(of, tensor.shape[axis] if tensor.shape else 0)
    if kept is None:
        return tensor
    shape = pruned.shape(tensor.shape, axis)
    outer = int(np.prod(tensor.shape[:axis], dtype=np.int64))
    rows = np.frombuffer(tensor.data, np.uint8).reshape(outer, tensor.shape[axis], -1)
    left: Any = np.ascontiguousarray(rows[:, list(kept)])
    return RawTensor(tensor.dtype, shape, memoryview(left).cast("B"))
