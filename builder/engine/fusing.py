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
from builder.engine.kernels.cpu import Array, Empty
from builder.engine.kernels.lora import Factors, Layout, factors, fuse_whole

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
    if compiled and (found := factors_of(layer, values.arrays[name])) is not None:
        fused = fuse_whole(values.stored(name), DTYPES[dtype], found, threads=THREADS, empty=made_by)
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


def factors_of(layer: Any, weight: mx.array) -> Factors | None:
    """What the compiled kernel multiplies to fuse a layer's `weight`, or None where mlx must do it.

    This evaluates the factors, and nothing of the weight.
    """
    layout = _layout(layer, weight)
    if layout is None:
        return None
    mx.eval(layer.lora_a, layer.lora_b)
    lora_a, lora_b = np.array(layer.lora_a), np.array(layer.lora_b)
    return factors(tuple(weight.shape), lora_a, lora_b, layer.scale, layout)


def can_fuse(layer: Any, weight: mx.array) -> bool:
    """Whether `factors_of` gives factors. This evaluates nothing of the layer."""
    return _layout(layer, weight) is not None


def _layout(layer: Any, weight: mx.array) -> Layout | None:
    """How the factors of a layer are multiplied. None where the compiled kernel is not exact."""
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    layouts: dict[type, Layout] = {
        LoRALinear: "linear",
        LoRASwitchLinear: "switch",
        LoRAEmbedding: "embedding",
    }
    layout = layouts.get(type(layer))
    if layout is None or weight.dtype not in DTYPES:
        return None
    if any(factor.dtype != mx.float32 for factor in (layer.lora_a, layer.lora_b)):
        return None
    rank = layer.lora_b.shape[-1] if layout == "switch" else layer.lora_b.shape[0]
    shape = weight.shape[-2], rank, weight.shape[-1]
    return layout if agreement.fuse_agrees(DTYPES[weight.dtype], layout, *shape) else None
