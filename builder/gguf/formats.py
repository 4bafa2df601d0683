"""The types of a GGUF: which one a weight gets, and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from builder.gguf.architecture import Architecture, Tensor
from builder.gguf.settings import Unwritable
from builder.gguf.weights import Rows, Weight
from builder.spec.destinations import EXACT
from builder.weights.structure import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BLOCK = 32  # elements that share a scale, in each of the quantized types
_AFFINE = {4: "Q4_1", 5: "Q5_1"}  # bits of mlx -> the type with the same values
_SMALL = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
_ENDS = ("token_embd.weight", "output.weight")


def type_of(wanted: str, tensor: Tensor, weight: Weight) -> str:
    """The type of a tensor in a file of the type that is wanted. Raises Unwritable."""
    if tensor.single or len(weight.shape) == 1:
        if weight.affine is not None:
            raise Unwritable(f'"{weight.name}" is quantized, and llama.cpp wants it in float32')
        return "F32"
    if wanted == EXACT:
        return _exact(weight)
    if weight.affine is not None:
        raise Unwritable(f'"{weight.name}" is quantized: {wanted} is made from weights that are not')
    if wanted in ("F32", "F16", "BF16"):
        return wanted
    if weight.columns % _BLOCK:
        return "F16"
    # As llama.cpp does: the ends of the model suffer most from few bits.
    return "Q8_0" if wanted in _SMALL and tensor.name in _ENDS else wanted


def _exact(weight: Weight) -> str:
    if weight.affine is None:
        return weight.dtype
    bits, group = weight.affine.bits, weight.affine.group
    if bits not in _AFFINE or group % _BLOCK:
        possible = "4 and 5 bits with groups of 32 or more"
        raise Unwritable(f'"{weight.name}" has {bits} bits, and a GGUF holds {possible} exactly')
    return _AFFINE[bits]


Quantize = Callable[[str, str, "Array", int], bytes]  # tensor, type, rows and the place of the first -> bytes


def by_package(name: str, kind: str, values: Array, at: int) -> bytes:
    """The bytes of some rows, by the package gguf."""
    from gguf import GGMLQuantizationType, quants

    made: bytes = quants.quantize(values, GGMLQuantizationType[kind]).tobytes()
    return made


def data(
    kind: str,
    tensor: Tensor,
    weight: Weight,
    weights: Rows,
    made: Architecture,
    quantize: Quantize = by_package,
) -> Iterator[bytes]:
    """The bytes of a tensor, portion by portion. Raises Unwritable for scales that a GGUF cannot hold."""
    heads = {"as is": 0, "query": made.heads, "key": made.key_heads}[tensor.order]
    is_bias = len(weight.shape) == 1
    unit = weight.rows // heads if heads and not is_bias else 1
    if len(weight.shape) == 3:  # experts, whole
        unit = weight.shape[1]
    if weight.affine is not None:
        for codes, scales, biases in weights.codes(weight, unit):
            rows = [_ordered(part, unit) if heads else part for part in (codes, scales, biases)]
            yield _repacked(kind, weight, *rows)
        return
    at = 0
    for values in weights.values(weight, unit):
        if heads and is_bias:
            ordered = _ordered(values.reshape(-1, 1), values.size // heads).reshape(1, -1)
        else:
            ordered = _ordered(values, unit) if heads else values
        if tensor.plus:
            ordered = ordered + ordered.dtype.type(tensor.plus)
        yield quantize(tensor.name, kind, ordered, at)
        at += len(values)


def _ordered(values: Array, size: int) -> Array:
    """Rows of heads of `size` rows in llama.cpp's order: both halves of a head, one row from each in turn."""
    columns = values.shape[1]
    return values.reshape(-1, 2, size // 2, columns).swapaxes(1, 2).reshape(-1, columns)


def _repacked(kind: str, weight: Weight, codes: Array, scales: Array, biases: Array) -> bytes:
    """Blocks of a type with a scale and a minimum, which are exactly mlx's scale and bias.

    A group of 64 becomes two blocks with the same scale.
    """
    import numpy as np

    blocks = weight.columns // _BLOCK
    each = blocks // scales.shape[1]
    half: list[Array] = []
    for values in (scales, biases):
        small = values.astype(np.float16)
        if not np.array_equal(small.astype(np.float32), values):
            raise Unwritable(f'the scales of "{weight.name}" are no float16 numbers, and a GGUF rounds them')
        half.append(np.repeat(small, each, axis=1).reshape(-1, 1).view(np.uint8))
    codes = codes.reshape(-1, _BLOCK)
    low, high = codes[:, : _BLOCK // 2], codes[:, _BLOCK // 2 :]
    parts: list[Array] = [*half]
    if kind == "Q5_1":
        parts.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
    parts.append((low & 15) | ((high & 15) << 4))
    return np.concatenate(parts, axis=1).tobytes()


def nbytes(kind: str, weight: Weight) -> int:
    """The size of a weight in a type."""
    return TensorSpec(weight.name, kind, weight.shape).nbytes
