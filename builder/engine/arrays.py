"""Turns mlx arrays into raw bytes. Only this module knows how safetensors spells the dtypes of mlx."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.weights.shards import RawTensor

_CODES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.float64: "F64",
    mx.uint8: "U8", mx.uint16: "U16", mx.uint32: "U32", mx.uint64: "U64",
    mx.int8: "I8", mx.int16: "I16", mx.int32: "I32", mx.int64: "I64", mx.bool_: "BOOL",
}  # fmt: skip


_PIECE = 1 << 18  # elements examined together, so that they stay in the CPU's cache


def dtype_code(array: mx.array) -> str:
    """The safetensors code of an array's dtype, such as "BF16". Raises KeyError for a complex array."""
    return _CODES[array.dtype]


def raw(array: mx.array) -> RawTensor:
    """The bytes of an evaluated array, row-major. They are copied only if a `sanitize` has transposed it."""
    view = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # numpy has no bfloat16
    memory = memoryview(_buffer(view))
    if not memory.c_contiguous:
        memory = memoryview(_buffer(mx.contiguous(view)))
    data = memory.cast("B") if array.size else memoryview(b"")
    return RawTensor(dtype_code(array), tuple(array.shape), data)


def stored(array: mx.array) -> npt.NDArray[Any]:
    """The stored values of an array as numpy, without a copy: uint16 bits for bfloat16 and float16.

    This evaluates the array.
    """
    view = array.view(mx.uint16) if array.dtype in (mx.bfloat16, mx.float16) else array
    return np.array(view, copy=False)


def in_rows(array: mx.array) -> mx.array:
    """The array with its rows one after the other in memory, lazy, and as it is where they are.

    On CUDA, mx.quantize reads a transposed matrix as if it was not transposed (mlx 0.32).
    """
    return mx.contiguous(array)


_INFINITY = {mx.bfloat16: 0x7F80, mx.float16: 0x7C00, mx.float32: 0x7F800000}


def is_finite(array: mx.array) -> bool:
    """Whether a floating array holds neither NaN nor infinity. This evaluates the array."""
    if array.dtype not in _INFINITY:
        return bool(np.isfinite(np.array(array, copy=False)).all())
    return are_finite(stored(array), array.dtype)


def are_finite(values: npt.NDArray[Any], dtype: mx.Dtype) -> bool:
    """Whether stored values of bfloat16, float16 or float32 hold neither NaN nor infinity."""
    bits = values.reshape(-1)
    if dtype == mx.float32:
        bits = bits.view(np.uint32)
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    pieces = range(0, bits.size, _PIECE)
    return all(int((bits[at : at + _PIECE] & ~sign).max()) < _INFINITY[dtype] for at in pieces)


def as_stored(data: npt.NDArray[np.uint8], dtype: mx.Dtype, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Bytes as the stored values of an array, without a copy: uint16 bits for bfloat16 and float16."""
    return data.view(np.float32 if dtype == mx.float32 else np.uint16).reshape(shape)


def from_stored(values: npt.NDArray[Any], dtype: mx.Dtype) -> mx.array:
    """A copy of stored values in mlx."""
    array = mx.array(values)
    return array if array.dtype == dtype else array.view(dtype)


def from_numpy(array: npt.NDArray[Any], dtype: str) -> RawTensor:
    """The bytes of a numpy array that holds stored values of the mlx dtype named `dtype`, without a copy."""
    data = memoryview(np.ascontiguousarray(array).data).cast("B") if array.size else memoryview(b"")
    return RawTensor(_CODES[getattr(mx, dtype)], tuple(array.shape), data)


@dataclass
class Values:
    """Tensors by name: mlx arrays, and numpy arrays of stored values that become mlx arrays on demand.

    Kernels quantize most of the weights that kernels fuse, and most of those that were read straight into
    numpy arrays. For these, a copy into mlx would be of no use.
    """

    arrays: dict[str, mx.array]
    fused: dict[str, tuple[npt.NDArray[Any], mx.Dtype]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def put(self, name: str, values: npt.NDArray[Any], dtype: mx.Dtype) -> None:
        """Replaces a tensor by stored values of `dtype`, in the shape of that tensor."""
        self.fused[name] = values, dtype

    def dtype(self, name: str) -> mx.Dtype:
        """The dtype of a tensor."""
        return self.fused[name][1] if name in self.fused else self.arrays[name].dtype

    def array(self, name: str) -> mx.array:
        """A tensor as an mlx array. Stored values are copied into mlx."""
        if name in self.fused:
            self.arrays[name] = from_stored(*self.fused.pop(name))
        return self.arrays[name]

    def stored(self, name: str) -> npt.NDArray[Any]:
        """The stored values of a tensor as numpy, evaluated, without a copy."""
        return self.fused[name][0] if name in self.fused else stored(self.arrays[name])


def _buffer(array: Any) -> Any:
    """An mx.array has the buffer protocol, but its type stubs do not say so."""
    return array
