"""mlx arrays as raw bytes: the one place that knows how a dtype is spelled in safetensors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.shards import RawTensor

_CODES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.float64: "F64",
    mx.uint8: "U8", mx.uint16: "U16", mx.uint32: "U32", mx.uint64: "U64",
    mx.int8: "I8", mx.int16: "I16", mx.int32: "I32", mx.int64: "I64", mx.bool_: "BOOL",
}  # fmt: skip


def dtype_code(array: mx.array) -> str:
    return _CODES[array.dtype]


def raw(array: mx.array) -> RawTensor:
    """The bytes of an evaluated array, row-major, without a copy unless a `sanitize` has transposed it."""
    view = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # numpy has no bfloat16
    memory = memoryview(_buffer(view))
    if not memory.c_contiguous:
        memory = memoryview(_buffer(mx.contiguous(view)))
    data = memory.cast("B") if array.size else memoryview(b"")
    return RawTensor(dtype_code(array), tuple(array.shape), data)


def stored(array: mx.array) -> npt.NDArray[Any]:
    """An array's stored values as numpy, evaluated, without a copy: uint16 bits for the half types."""
    view = array.view(mx.uint16) if array.dtype in (mx.bfloat16, mx.float16) else array
    return np.array(view, copy=False)


def from_numpy(array: npt.NDArray[Any], dtype: str) -> RawTensor:
    """The bytes of a numpy array of stored values of an mlx dtype, without a copy."""
    data = memoryview(np.ascontiguousarray(array).data).cast("B") if array.size else memoryview(b"")
    return RawTensor(_CODES[getattr(mx, dtype)], tuple(array.shape), data)


def _buffer(array: Any) -> Any:
    """An mx.array has the buffer protocol, which its stubs do not say."""
    return array
