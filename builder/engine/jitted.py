"""The compiled loops behind `kernels`: affine quantization to several widths, and LoRA fusing, on CPU.

Importing this module imports numba; only `kernels` does so, and only when it is asked for something.

Everything here repeats mlx's CPU arithmetic operation for operation, so the order of the float32
operations matters and no fast-math flag is set. What may be rearranged is integer work: minima and maxima
are taken over integer keys that sort like the floats (so that the compiler vectorizes them, and so that
NaN and infinity show up as the largest keys), and codes are packed eight at a time inside 64-bit words.

One walk over the weights handles `CHUNK` elements at a time: they are widened to float32 once and stay in
the first-level cache while every setting is made from them. The loops release the GIL and start no threads.

Compiled code is kept in the user's cache directory, stamped with the content of this file. That stamp does
not see other files, so everything that is compiled must stay in this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Raw = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

BFLOAT16, FLOAT16, FLOAT32 = 0, 1, 2
CHUNK = 4096  # elements; a multiple of every group size, and 16 KiB once widened

_Function = TypeVar("_Function", bound=Callable[..., object])


def cache_directory() -> Path:
    """Where compiled code is kept: the platform's cache directory of this user."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "modelkiln" / "numba"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelkiln" / "numba"


def _inner(function: _Function) -> _Function:
    """Compile a loop that other loops call; it is compiled into its callers and not cached by itself."""
    compiled: _Function = numba.njit(nogil=True, error_model="numpy")(function)
    return compiled


def _any_order(function: _Function) -> _Function:
    """Compile a loop whose float sums may be taken in any order: for statistics, never for weights."""
    compiled: _Function = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})(function)
    return compiled


def _entry(function: _Function) -> _Function:
    """Compile a loop that Python calls, on its first call, and keep the result on disk where possible."""
    configured = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = configured or str(cache_directory())
    try:
        compiled: _Function = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except (RuntimeError, OSError):  # no directory that we may write to: compile in every process
        compiled = _inner(function)
    finally:
        numba.config.CACHE_DIR = configured
    return compiled


@_inner
def _widen(kind: int, raw: Raw, bits: Words) -> None:
    """Write `raw` as float32 bit patterns."""
    if kind == BFLOAT16:
        for j in range(raw.size):
            bits[j] = np.uint32(raw[j]) << np.uint32(16)
    elif kind == FLOAT16:
        for j in range(raw.size):
            half = np.uint32(raw[j])
            size = np.uint32(half & np.uint32(0x7FFF))
            small = np.float32(np.float32(np.int32(size)) * np.float32(2.0**-24)).view(np.uint32)
            offset = np.uint32(0x70000000) if size >= np.uint32(0x7C00) else np.uint32(0x38000000)
            large = np.uint32((size << np.uint32(13)) + offset)
            wide = small if size < np.uint32(0x400) else large
            bits[j] = wide | ((half & np.uint32(0x8000)) << np.uint32(16))
    else:
        for j in range(raw.size):
            bits[j] = raw[j]


@_inner
def _sort_keys(bits: Words, keys: Keys) -> None:
    """Integers that sort like the floats: the bit pattern, with the magnitude inverted below zero."""
    signed = bits.view(np.int32)
    for j in range(keys.size):
        keys[j] = signed[j] ^ ((signed[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inner
def _narrow(kind: int, value: np.float32) -> np.uint32:
    """The bits of `value` rounded to nearest even in the storage type; `value` is not NaN."""
    bits = np.float32(value).view(np.uint32)
    if kind == FLOAT32:
        return bits
    if kind == BFLOAT16:
        return np.uint32(
            (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        )
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size >= np.uint32(0x47800000):  # 65536 and more: infinity
        return np.uint32(sign | np.uint32(0x7C00))
    if size < np.uint32(0x38800000):  # below the smallest normal: let the adder round at 2 ** -24
        rounded = np.float32(abs(value) + np.float32(0.5)).view(np.uint32)
        return np.uint32(sign | (rounded - np.uint32(0x3F000000)))
    odd = (size >> np.uint32(13)) & np.uint32(1)
    return np.uint32(sign | ((size + np.uint32(0xFFF) + odd - np.uint32(0x38000000)) >> np.uint32(13)))


@_inner
def _round(kind: int, bits: Words) -> None:
    """Round float32 bit patterns to the storage type, in place."""
    if kind == BFLOAT16:
        for j in range(bits.size):
            odd = (bits[j] >> np.uint32(16)) & np.uint32(1)
            bits[j] = np.uint32(bits[j] + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    elif kind == FLOAT16:
        values = bits.view(np.float32)
        for j in range(bits.size):
            size = np.float32(abs(values[j]))
            small = np.float32((size + np.float32(0.5)) - np.float32(0.5)).view(np.uint32)
            small = np.uint32(small | (bits[j] & np.uint32(0x80000000)))
            odd = (bits[j] >> np.uint32(13)) & np.uint32(1)
            large = np.uint32(bits[j] + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)
            if size >= np.float32(65520.0):
                large = (bits[j] & np.uint32(0x80000000)) | np.uint32(0x7F800000)
            bits[j] = small if size < np.float32(2.0**-14) else large


@_inner
def _ranges(keys: Keys, low: Keys, high: Keys) -> bool:
    """Smallest and largest key of every row of `keys`; False when one of them is not of a finite float."""
    least, most = np.int32(0), np.int32(0)
    for i in range(keys.shape[0]):
        smallest, largest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        for j in range(keys.shape[1]):
            smallest, largest = min(smallest, keys[i, j]), max(largest, keys[i, j])
        low[i], high[i] = smallest, largest
        least, most = min(least, smallest), max(most, largest)
    return bool(most < np.int32(0x7F800000) and least > np.int32(-0x7F800001))


@_inner
def _from_key(key: np.int32) -> np.float32:
    """The float of a key made by `_ranges`."""
    return np.float32(np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32))


@_inner
def _put(rows: Words, row: int, at: int, word: np.uint64) -> None:
    """Store 64 bits as two little-endian words."""
    rows[row, at] = np.uint32(word & np.uint64(0xFFFFFFFF))
    rows[row, at + 1] = np.uint32(word >> np.uint64(32))


@_inner
def _pack(width: int, codes: Bytes, count: int, out: Words) -> None:
    """Write `count` codes (a multiple of 32) as a little-endian stream of `width`-bit fields."""
    if width == 8:
        whole = codes.view(np.uint32)
        for j in range(count // 4):
            out[j] = whole[j]
        return
    eight = codes.view(np.uint64)
    field = np.uint64(width)
    gap1, gap2 = np.uint64(8) - field, np.uint64(16) - np.uint64(2) * field
    gap4 = np.uint64(32) - np.uint64(4) * field
    for j in range(count // 8):  # squeeze the gaps out of eight codes, pairs first
        x = eight[j]
        x = (x & np.uint64(0x00FF00FF00FF00FF)) | ((x & np.uint64(0xFF00FF00FF00FF00)) >> gap1)
        x = (x & np.uint64(0x0000FFFF0000FFFF)) | ((x & np.uint64(0xFFFF0000FFFF0000)) >> gap2)
        eight[j] = (x & np.uint64(0x00000000FFFFFFFF)) | ((x & np.uint64(0xFFFFFFFF00000000)) >> gap4)
    if width == 4:
        for j in range(count // 8):
            out[j] = np.uint32(eight[j])
        return
    fours = eight.reshape(-1, 4)
    rows = out.reshape(-1, width)
    for j in range(count // 32):
        a, b, c, d = fours[j, 0], fours[j, 1], fours[j, 2], fours[j, 3]
        if width == 2:
            _put(rows, j, 0, a | (b << np.uint64(16)) | (c << np.uint64(32)) | (d << np.uint64(48)))
        elif width == 3:
            _put(rows, j, 0, a | (b << np.uint64(24)) | (c << np.uint64(48)))
            rows[j, 2] = np.uint32((c >> np.uint64(16)) | (d << np.uint64(8)))
        elif width == 5:
            _put(rows, j, 0, a | (b << np.uint64(40)))
            _put(rows, j, 2, (b >> np.uint64(24)) | (c << np.uint64(16)) | (d << np.uint64(56)))
            rows[j, 4] = np.uint32(d >> np.uint64(8))
        else:
            _put(rows, j, 0, a | (b << np.uint64(48)))
            _put(rows, j, 2, (b >> np.uint64(16)) | (c << np.uint64(32)))
            _put(rows, j, 4, (c >> np.uint64(32)) | (d << np.uint64(16)))


@_inner
def _scale_and_bias(least: np.float32, most: np.float32, top: np.float32) -> tuple[np.float32, np.float32]:
    """Scale and bias of a group between `least` and `most`, such that zero is a step and one end is exact."""
    negative = abs(least) > abs(most)
    scale = (most - least) / top
    if scale < np.float32(1e-7):
        scale = np.float32(1e-7)
    if not negative:
        scale = -scale
    edge = least if negative else most
    steps = np.rint(edge / scale)
    if steps != np.float32(0):
        return edge / steps, edge
    return scale, np.float32(0)


@_inner
def _store(kind: int, values: Floats, out: Raw) -> None:
    """Write `values` in the storage type."""
    for i in range(out.size):
        out[i] = _narrow(kind, values[i])


@_inner
def _fit(low: Keys, high: Keys, groups: int, top: np.float32, scales: Floats, biases: Floats) -> None:
    """Scale and bias of every group; a row of `low` and `high` holds the keys of the parts of one group."""
    for i in range(groups):
        smallest, largest = low[i, 0], high[i, 0]
        for j in range(low.shape[1]):
            smallest, largest = min(smallest, low[i, j]), max(largest, high[i, j])
        scales[i], biases[i] = _scale_and_bias(_from_key(smallest), _from_key(largest), top)


@_inner
def _steps(
    values: Floats, groups: int, scales: Floats, biases: Floats, top: np.float32, steps: Bytes
) -> None:
    """The code of every value: how many scales it lies from the bias, rounded and clipped to 0 .. top."""
    for i in range(groups):
        scale, bias = scales[i], biases[i]
        for j in range(values.shape[1]):
            step = np.rint((values[i, j] - bias) / scale)
            steps[i, j] = np.uint8(np.int32(min(max(step, np.float32(0)), top)))


@_inner
def _scale_up(steps: Bytes, groups: int, scales: Floats, out: Floats) -> None:
    """The product in mx.dequantize, group by group."""
    for i in range(groups):
        scale = scales[i]
        for j in range(steps.shape[1]):
            out[i, j] = np.float32(steps[i, j]) * scale


@_inner
def _add_biases(groups: int, biases: Floats, out: Floats) -> None:
    """The sum in mx.dequantize, group by group."""
    for i in range(groups):
        bias = biases[i]
        for j in range(out.shape[1]):
            out[i, j] += bias


@_any_order
def _add_errors(restored: Floats, values: Floats, delta: Floats) -> tuple[float, float]:
    """Sums of squared errors and of error times delta: in any order within a row, the rows in double."""
    squares, dots = 0.0, 0.0
    for i in range(restored.shape[0]):
        square, dot = np.float32(0), np.float32(0)
        for j in range(restored.shape[1]):
            error = restored[i, j] - values[i, j]
            square += error * error
            dot += error * delta[i, j]
        squares += np.float64(square)
        dots += np.float64(dot)
    return squares, dots


@_entry
def quantize_span(
    kind: int,
    raw: Raw,
    first: int,
    last: int,
    settings: Indices,
    codes: Words,
    params: Raw,
    original: Raw,
    sums: npt.NDArray[np.float64],
) -> int:
    """Quantize elements `first` to `last` of the flat array `raw` to every one of `settings`.

    settings: (n, 5) int64; per row bits, group size, where its codes start in `codes`, and where its scales
    and its biases start in `params`. `first` is a multiple of CHUNK, `last - first` of every group size.
    original: the weights before fusing, flat, or empty when nothing is to be measured.
    sums: (n, 3) float64, added to: squared error, error times delta, squared delta.
    Returns -1, or the index where a chunk starts that holds NaN or infinity.
    """
    bits, delta_bits, restored = (
        np.empty(CHUNK, np.uint32),
        np.empty(CHUNK, np.uint32),
        np.empty(CHUNK, np.uint32),
    )
    values, delta, restored_values = (
        bits.view(np.float32),
        delta_bits.view(np.float32),
        restored.view(np.float32),
    )
    keys, steps = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.uint8)
    nothing = np.zeros(CHUNK, np.float32)
    span = settings[:, 1].min()
    low, high = np.empty(CHUNK // span, np.int32), np.empty(CHUNK // span, np.int32)
    scale_bits, bias_bits = np.empty(CHUNK // span, np.uint32), np.empty(CHUNK // span, np.uint32)
    scales, biases = scale_bits.view(np.float32), bias_bits.view(np.float32)
    for start in range(first, last, CHUNK):
        count = min(CHUNK, last - start)
        _widen(kind, raw[start : start + count], bits)
        _sort_keys(bits, keys[:count])
        if not _ranges(keys[:count].reshape(-1, span), low, high):
            return start
        delta_squared = 0.0
        if original.size:
            _widen(kind, original[start : start + count], delta_bits)
            for j in range(count):
                delta[j] = values[j] - delta[j]
            rows = delta[:count].reshape(-1, span)
            delta_squared = _add_errors(rows, nothing.reshape(-1, span), rows)[0]
        for row in range(settings.shape[0]):
            width, group, codes_at, scales_at, biases_at = settings[row]
            top, groups, at = np.float32((1 << width) - 1), count // group, start // group
            _fit(low.reshape(-1, group // span), high.reshape(-1, group // span), groups, top, scales, biases)
            _steps(values.reshape(-1, group), groups, scales, biases, top, steps.reshape(-1, group))
            _store(kind, scales, params[scales_at + at : scales_at + at + groups])
            _store(kind, biases, params[biases_at + at : biases_at + at + groups])
            if original.size:
                _round(kind, scale_bits)
                _round(kind, bias_bits)
                tile = restored_values.reshape(-1, group)
                _scale_up(steps.reshape(-1, group), groups, scales, tile)
                _round(kind, restored[:count])
                _add_biases(groups, biases, tile)
                _round(kind, restored[:count])
                square, dot = _add_errors(tile[:groups], values.reshape(-1, group), delta.reshape(-1, group))
                sums[row, 0] += square
                sums[row, 1] += dot
                sums[row, 2] += delta_squared
            packed_at = codes_at + start // 32 * width
            _pack(width, steps, count, codes[packed_at : packed_at + count // 32 * width])
    return -1


@_inner
def _combine(factors: Floats, rows: Floats, sums: Floats) -> None:
    """sums = factors @ rows, added up in order from zero; four at a time only to save loads and stores."""
    rank = factors.size
    whole = rank - rank % 4
    for j in range(sums.size):
        sums[j] = np.float32(0)
    for k in range(0, whole, 4):
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        row_a, row_b, row_c, row_d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        for j in range(sums.size):
            sums[j] = (((sums[j] + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j]
    for k in range(whole, rank):
        a, row_a = factors[k], rows[k]
        for j in range(sums.size):
            sums[j] += a * row_a[j]


@_entry
def fuse_rows(kind: int, raw: Raw, left: Floats, right: Floats, first: int, last: int, out: Raw) -> None:
    """Rows `first` to `last` of weight + (left @ right rounded to the storage type), rounded again.

    raw, out: (rows, columns) bits. left: (rows, rank). right: (rank, columns). The sum over the rank is
    taken in order from zero, every product and every sum rounded to float32.
    """
    columns = raw.shape[1]
    wide, sums_bits = np.empty(columns, np.uint32), np.empty(columns, np.uint32)
    weights, sums = wide.view(np.float32), sums_bits.view(np.float32)
    for i in range(first, last):
        _combine(left[i], right, sums)
        _round(kind, sums_bits)
        _widen(kind, raw[i], wide)
        for j in range(columns):
            weights[j] += sums[j]
        _store(kind, weights, out[i])
