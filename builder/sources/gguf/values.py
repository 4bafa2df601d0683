"""Reads the numbers of a GGUF tensor, one slab at a time, so that float32 takes no more memory than a slab.

A quantized number becomes q * scale + bias in float32 with unsigned q, then float16. The result is
bit-identical to mx.load and mx.dequantize, the sign of zero included. Types: ggml's Q4_0, Q4_1 and Q8_0
(blocks of 32), F32, F16, BF16.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from builder.errors import SourceInvalid
from builder.sources.gguf.header import TYPES, GgufFile, GgufTensor

_SLAB = 1 << 22  # elements converted at once
_BY_NAME = {name: (block, width) for name, block, width in TYPES.values()}
_SCALE_BYTES = {"Q4_0": 2, "Q8_0": 2, "Q4_1": 4}


def read_half(file: GgufFile, tensor: GgufTensor, table: str) -> npt.NDArray[np.float16]:
    """The tensor in float16, in its shape.

    Raises SourceInvalid if a value is NaN, infinite or beyond float16, or if the file became shorter.
    """
    half = np.empty(prod(tensor.shape), np.float16)
    at = 0
    for values in _slabs(file, tensor, table):
        with np.errstate(over="ignore", invalid="ignore"):
            half[at : at + values.size] = values
        if not np.isfinite(half[at : at + values.size]).all():
            what = f'tensor "{tensor.name}" holds NaN, infinity or values beyond float16'
            raise SourceInvalid(table=table, path=file.path, what=what)
        at += values.size
    return half.reshape(tensor.shape)


def read_single(file: GgufFile, tensor: GgufTensor, table: str) -> npt.NDArray[np.float32]:
    """A small tensor in float32, in its shape. Raises SourceInvalid if the file became shorter."""
    return np.concatenate([*_slabs(file, tensor, table), np.empty(0, np.float32)]).reshape(tensor.shape)


def _slabs(file: GgufFile, tensor: GgufTensor, table: str) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the values in order, in float32, at most _SLAB at a time."""
    block, width = _BY_NAME[tensor.type]
    blocks = prod(tensor.shape) // block
    with file.path.open("rb") as handle:
        handle.seek(tensor.start)
        while blocks:
            count = min(blocks, _SLAB // block)
            data = np.fromfile(handle, np.uint8, count * width)
            if data.size != count * width:
                raise SourceInvalid(table=table, path=file.path, what="became shorter while it was read")
            yield dequantize(data, tensor.type)
            blocks -= count


def dequantize(data: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    """The values of whole blocks of one type, in float32, flat."""
    match kind:
        case "F32":
            return data.view("<f4")
        case "F16":
            return data.view("<f2").astype(np.float32)
        case "BF16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    rows = data.reshape(-1, _BY_NAME[kind][1])
    packed, scale = rows[:, _SCALE_BYTES[kind] :], _half(rows, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # read_half refuses what is not finite
        if kind == "Q8_0":
            values = (packed ^ 0x80).astype(np.float32)
            bias = scale * np.float32(-128)
        else:
            values = _nibbles(packed)
            bias = scale * np.float32(-8) if kind == "Q4_0" else _half(rows, 2)
        values *= scale
        values += bias
    return values.reshape(-1)


def _half(rows: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float32]:
    """The float16 at a byte offset of each row, as a float32 column."""
    return np.ascontiguousarray(rows[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """16 bytes to 32 values: all low halves first, then all high halves."""
    values = np.empty((len(packed), 32), np.float32)
    values[:, :16] = packed & 0xF
    values[:, 16:] = packed >> 4
    return values
