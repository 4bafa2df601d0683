"""Adapters on tensors that mlx-lm changes while it loads them: fused into the checkpoint, then loaded.

What is added to such a tensor must go through what the tensor goes through: a constant from the config, a
shift by one, a split, a transposition, a norm. So the tensor of the checkpoint is fused, and the model's own
`sanitize` makes the parameters of it. That is right by definition: it is the model that was merged first and
loaded afterwards. Everything is lazy. Only the parameters that the adapter reaches are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.engine.loading import AdapterMismatch, LoadedAdapter, load, lora_layer
from builder.engine.sanitizing import Tensors
from builder.weights.lora import Merge


def with_merges(
    adapter: LoadedAdapter, merges: Mapping[str, Merge], directory: Path, *, trust_remote_code: bool = False
) -> LoadedAdapter:
    """The adapter, with the parameters that `merges` reach among its tensors.

    merges: by the name of the tensor in the checkpoint in `directory`. Raises AdapterMismatch, and what
    `load` raises.
    """
    if not merges:
        return adapter

    def around(sanitize: Callable[[Tensors], Tensors], weights: Tensors) -> Tensors:
        for name, merge in merges.items():
            if name not in weights:
                raise AdapterMismatch(adapter=adapter.name, tensor=name, what="is not in the checkpoint")
            weights[name] = merged(weights[name], name, merge, adapter)
        return sanitize(weights)

    loaded = load(directory, trust_remote_code=trust_remote_code, around=around)
    parameters = dict(tree_flatten(loaded.model.parameters()))
    reached = {name: parameters[name] for merge in merges.values() for name in merge.reaches}
    return replace(adapter, tensors={**adapter.tensors, **reached})


def merged(weight: mx.array, name: str, merge: Merge, adapter: LoadedAdapter) -> mx.array:
    """One tensor of the checkpoint with the adapter in it, by the `fuse` of mlx_lm.tuner's layers."""
    if merge.whole is not None:
        if merge.whole.shape != weight.shape:
            what = f"has shape {tuple(merge.whole.shape)}, but the checkpoint has {tuple(weight.shape)}"
            raise AdapterMismatch(adapter=adapter.name, tensor=name, what=what)
        weight = merge.whole
    if not merge.parts:
        return weight
    if weight.ndim != 2:
        what = f"has shape {tuple(weight.shape)}, and a low-rank pair needs two dimensions"
        raise AdapterMismatch(adapter=adapter.name, tensor=name, what=what)
    module: nn.Module = nn.Embedding(1, 1) if merge.embedding else nn.Linear(1, 1, bias=False)
    module.weight = weight.T if merge.flip else weight
    scales = {merge.path: merge.scale}
    layer = lora_layer(module, merge.path, merge.parts, replace(adapter, scales=scales))
    fused = layer.fuse().weight
    assert isinstance(fused, mx.array)
    return fused.T if merge.flip else fused
