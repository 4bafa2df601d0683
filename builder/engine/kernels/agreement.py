"""Checks that the compiled kernels give what the installed mlx gives.

The comparisons are made once per process, on small inputs chosen to be hard. Quantization uses the same
arithmetic in every CPU build of mlx, except for the rounding of half precision. Fused weights depend on the
order in which mlx's BLAS adds. The reference BLAS of the Linux wheels adds in order and without fused
multiply-add, as `builder.engine.kernels.lora.fuse_lora` does. With another BLAS (Accelerate, OpenBLAS) mlx
itself must fuse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from builder.engine.kernels.cpu import (
    SETTINGS,
    Array,
    QuantizedArrays,
    Setting,
    available,
    dequantize_into,
    quantize_widths,
)
from builder.engine.kernels.lora import Layout, fuse_lora

_LARGE = 1 << 22  # multiplications. OpenBLAS has other loops below 1 million, and does not split a rank


def verify(dtype: str) -> frozenset[Setting]:
    """The settings for which `quantize_widths` is bit-identical to mx.quantize, on arrays of `dtype`.

    Empty when the kernels are not available. The comparison runs once per process and dtype.
    """
    return _verified(dtype) if available(dtype) else frozenset()


def dequantize_agrees(dtype: str, setting: Setting) -> bool:
    """Whether `dequantize_into` is bit-identical to mx.dequantize, on arrays made from `dtype`.

    False when the kernels are not available. The comparison runs once per process and dtype.
    """
    return available(dtype) and setting in _dequantized_alike(dtype)


def fuse_agrees(dtype: str, layout: Layout, rows: int, rank: int, columns: int) -> bool:
    """Whether `fuse_lora` is bit-identical to mlx, for weights of (rows, columns) and factors of `rank`.

    The factors are float32. False when the kernels are not available. The comparison runs once per process
    and shape, because a BLAS may add in another order for another shape. It takes no more rows than a BLAS
    needs to treat a matrix as a large one: more of them do not change the order within a row.
    """
    large = max(64, -(-_LARGE // max(1, rank * columns)))
    return available(dtype) and _fuse_verified(dtype, layout, min(rows, large), rank, columns)


@functools.cache
def _verified(dtype: str) -> frozenset[Setting]:
    return agreeing(dtype, quantize_widths)


def agreeing(dtype: str, quantize: Callable[..., list[QuantizedArrays]]) -> frozenset[Setting]:
    """The settings for which `quantize` is bit-identical to mx.quantize on the CPU.

    `quantize` is called like `quantize_widths`.
    """
    import mlx.core as mx

    weight = hard_weights(dtype)
    array = mx.array(weight)
    if dtype != "float32":
        array = array.view(getattr(mx, dtype))
    settings = sorted(SETTINGS)
    agreed = set()
    for (bits, group), ours in zip(settings, quantize(weight, dtype, settings), strict=True):
        theirs = mx.quantize(array, group_size=group, bits=bits, stream=mx.cpu)
        pairs = zip((ours.weight, ours.scales, ours.biases), theirs, strict=True)
        if all(_same(mine, _stored(its)) for mine, its in pairs):
            agreed.add((bits, group))
    return frozenset(agreed)


@functools.cache
def _dequantized_alike(dtype: str) -> frozenset[Setting]:
    import mlx.core as mx

    weight = hard_weights(dtype)
    array = mx.array(weight)
    if dtype != "float32":
        array = array.view(getattr(mx, dtype))
    agreed, ours = set(), np.empty(weight.shape, np.float32)
    with mx.stream(mx.cpu):
        for bits, group in sorted(SETTINGS):
            parts = mx.quantize(array, group_size=group, bits=bits)
            theirs = np.array(mx.dequantize(*parts, group_size=group, bits=bits).astype(mx.float32))
            codes, scales, biases = map(_stored, parts)
            dequantize_into(ours, codes, scales, biases, dtype=dtype, setting=(bits, group))
            if np.array_equal(ours, theirs, equal_nan=True):
                agreed.add((bits, group))
    return frozenset(agreed)


@functools.cache
def _fuse_verified(dtype: str, layout: Layout, rows: int, rank: int, columns: int) -> bool:
    import mlx.core as mx

    def normal(*shape: int) -> Any:
        return mx.array(draw.standard_normal(shape, np.float32))

    def repeated(*shape: int) -> Array:  # drawing and casting so many numbers would cost more than the rest
        drawn = _stored(mx.array(0.02 * draw.standard_normal(1 << 16, np.float32)).astype(kind))
        return np.resize(drawn, shape)

    draw, scale, kind = np.random.default_rng(0), 2.7, getattr(mx, dtype)
    with mx.stream(mx.cpu):
        if layout == "switch":
            weight, a, b = repeated(2, rows, columns), normal(2, rank, columns), normal(2, rows, rank)
        elif layout == "linear":
            weight, a, b = repeated(rows, columns), normal(columns, rank), normal(rank, rows)
        else:
            weight, a, b = repeated(rows, columns), normal(rows, rank), normal(rank, columns)
        if layout == "switch":
            delta = (scale * b) @ a
        else:
            delta = (scale * b.T) @ a.T if layout == "linear" else (scale * a) @ b
        fused = _stored(mx.array(weight).view(kind) + delta.astype(kind))
    return _same(fuse_lora(weight, dtype, np.array(a), np.array(b), scale, layout), fused)


def hard_weights(dtype: str) -> Array:
    """Finite stored values of `dtype`, (rows, 256), that expose a quantizer that is only nearly right."""
    unsigned, smallest_infinity, half = {
        "bfloat16": (np.uint16, 0x7F80, 0x8000),
        "float16": (np.uint16, 0x7C00, 0x8000),
        "float32": (np.uint32, 0x7F800000, 0x80000000),
    }[dtype]
    draw = np.random.default_rng(0)
    patterns: list[Array] = []
    for top in (1, 0x80, smallest_infinity >> 1, smallest_infinity):  # zeros, denormals, small, all sizes
        sizes = draw.integers(0, top, (4, 256))
        patterns += [sizes, sizes + half, sizes + half * draw.integers(0, 2, (4, 256))]
    largest = np.full((1, 256), smallest_infinity - 1)
    patterns += [largest, largest + half, largest + half * (np.arange(256) % 2)]  # constants, the whole range

    ramp = np.arange(256, dtype=np.float32)
    values: list[Array] = [draw.standard_normal((8, 256)) * 10.0**power for power in range(-9, 5)]
    values += [ramp * step for step in (0.5, 1.0, 1.5, -0.5)]  # ties between two steps
    values += [(ramp % 31 - offset) * 0.25 for offset in (0, 15, 15.5, 30)]  # ties, and ends of equal size
    values += [1.0 + 1e-3 * draw.standard_normal(256), -3.0 - draw.random(256), np.full(256, 1e-8)]
    values += [np.where(ramp % 64 == 5, 100.0, 1e-3 * ramp), np.full(256, -0.7)]  # an outlier, a constant
    floats = np.concatenate([np.atleast_2d(row) for row in values]).astype(np.float32)
    if dtype == "float16":
        stored = floats.astype(np.float16).view(np.uint16)
    else:
        stored = (floats.view(np.uint32) >> (16 if dtype == "bfloat16" else 0)).astype(unsigned)
    everything = np.concatenate([np.concatenate(patterns).astype(unsigned), stored])
    return everything.view(np.float32) if dtype == "float32" else everything


def _stored(array: Any) -> Array:
    """The stored values of an mx.array, copied into a numpy array."""
    import mlx.core as mx

    return np.array(array.view(mx.uint16) if array.dtype in (mx.bfloat16, mx.float16) else array)


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays have equal shapes, dtypes and bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = f"u{one.dtype.itemsize}"
    return bool((np.ascontiguousarray(one).view(bits) == np.ascontiguousarray(other).view(bits)).all())
