"""K-quants: the types of all weights of a file, and their bytes by llama.cpp with an importance matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from builder.gguf.architecture import Architecture, Tensor
from builder.gguf.formats import Quantize, by_package, type_of
from builder.gguf.mixes import MIXES, mixed, model_of
from builder.gguf.quantizer import Quantizer
from builder.gguf.settings import Unwritable
from builder.gguf.weights import Weight

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_FLOATS = ("F32", "F16", "BF16")


def kinds_of(
    wanted: str, tensors: Sequence[tuple[Tensor, Weight]], made: Architecture, *, weighed: bool
) -> list[str]:
    """The type of each tensor in a file of the type that is wanted. Raises Unwritable."""
    if wanted not in MIXES:
        return [type_of(wanted, tensor, weight) for tensor, weight in tensors]
    plain = [type_of("F16", tensor, weight) for tensor, weight in tensors]  # refuses what is quantized
    free = [(t.name, w.columns) for (t, w), kind in zip(tensors, plain, strict=True) if kind == "F16"]
    mix = mixed(wanted, free, model_of(made), weighed=weighed)
    return [mix.get(tensor.name, kind) for (tensor, _), kind in zip(tensors, plain, strict=True)]


def by_llama(
    quantizer: Quantizer, tensors: Sequence[tuple[Tensor, Weight, str]], means: Mapping[str, Array]
) -> Quantize:
    """What gives the bytes of rows. `means`: tensor -> how large its inputs are [matrices, columns].

    A tensor without means is quantized as if all of its inputs were equal. Raises QuantizerFailed.
    """
    shapes = {tensor.name: weight.shape for tensor, weight, _ in tensors}
    for name, own in means.items():
        shape = shapes.get(name)
        if shape is not None and own.shape != (shape[0] if len(shape) == 3 else 1, shape[-1]):
            raise Unwritable(f'the importance matrix of "{name}" is {own.shape}, and the weight is {shape}')

    def quantize(name: str, kind: str, values: Array, at: int) -> bytes:
        if kind in _FLOATS:
            return by_package(name, kind, values, at)
        shape, own = shapes[name], means.get(name)
        rows = shape[1] if len(shape) == 3 else len(values)
        first = at // rows if len(shape) == 3 else 0
        stack = values.reshape(-1, rows, shape[-1])
        weights = own[first : first + len(stack)] if own is not None else None
        return quantizer.quantize(name, kind, stack, weights)

    return quantize
