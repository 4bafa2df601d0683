"""Fuses the LoRA and DoRA layers of a block: by compiled kernels where they are exact, else by mlx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from builder.engine.arrays import Values
from builder.engine.kernels import agreement
from builder.engine.kernels import cpu as kernels
from builder.engine.kernels.cpu import Array, Empty

DTYPES = {mx.bfloat16: "bfloat16", mx.float16: "float16", mx.float32: "float32"}
THREADS = 2


def fuse(values: Values, path: str, layer: Any, empty: Empty, *, compiled: bool) -> None:
    """Puts the fused parameters of one adapted module into `values`.

    compiled: kernels may do it, in arrays that `empty` makes.
    """
    name = f"{path}.weight"
    dtype = values.dtype(name)

    def in_place(shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
        """What was read into numpy is of no use afterwards. The kernel reads a row before it writes it."""
        return values.stored(name).view(kind).reshape(shape)

    made_by = in_place if name in values.fused else empty
    fused = _by_kernels(values, name, layer, made_by) if compiled else None
    if fused is not None:
        values.put(name, fused, dtype)
        return
    for own in [own for own in values.fused if own.rpartition(".")[0] == path]:
        lend({path: layer}, own, values.array(own))
    result = dict(tree_flatten(layer.fuse().parameters()))
    values.arrays |= {f"{path}.{leaf}": array for leaf, array in result.items()}


def lend(layers: Mapping[str, Any], name: str, array: mx.array) -> None:
    """Gives a parameter to the module inside of its LoRA layer. mlx would read it, a second time."""
    path, _, leaf = name.rpartition(".")
    layer = layers.get(path, {})
    for inner in ("linear", "embedding"):
        if leaf in layer.get(inner, ()):
            layer[inner][leaf] = array


def _by_kernels(values: Values, name: str, layer: Any, empty: Empty) -> Array | None:
    """The stored values of the fused weight by the compiled kernel, or None where mlx must do it."""
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    layouts: dict[type, kernels.Layout] = {
        LoRALinear: "linear",
        LoRASwitchLinear: "switch",
        LoRAEmbedding: "embedding",
    }
    layout = layouts.get(type(layer))
    factors, weight = (layer.lora_a, layer.lora_b), values.arrays[name]
    if layout is None or weight.dtype not in DTYPES or any(f.dtype != mx.float32 for f in factors):
        return None
    dtype = DTYPES[weight.dtype]
    rank = layer.lora_b.shape[-1] if layout == "switch" else layer.lora_b.shape[0]
    if not agreement.fuse_agrees(dtype, layout, weight.shape[-2], rank, weight.shape[-1]):
        return None
    mx.eval(factors)
    lora_a, lora_b = (np.array(factor) for factor in factors)
    return kernels.fuse_lora(
        values.stored(name), dtype, lora_a, lora_b, layer.scale, layout, threads=THREADS, empty=empty
    )
