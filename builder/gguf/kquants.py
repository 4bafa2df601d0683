"""The bytes of K-quants, by llama.cpp, with an importance matrix or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from builder.gguf.formats import Quantize, by_package
from builder.gguf.layout import Made
from builder.gguf.quantizer import Quantizer
from builder.gguf.settings import Unwritable

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_FLOATS = ("F32", "F16", "BF16")


def by_llama(quantizer: Quantizer, tensors: Sequence[Made], means: Mapping[str, Array]) -> Quantize:
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
