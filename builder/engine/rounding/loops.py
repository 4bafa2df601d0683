"""The loops of calibrated rounding on a CPU, compiled by numba when they are first used.

Importing this module imports numba. `builder.engine.rounding.weight` says what the loops compute, and does
the same with mlx where numba is not there. Rows are independent, so callers may cut them among threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2  # what scales and biases are stored in
_MOST_BFLOAT16 = np.float32(3.3895314e38)
_LEAST_FLOAT16 = np.float32(2.0**-24)  # as in builder.engine.rounding.grid
_LEAST = np.float32(2.0**-120)


@numba.njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
def _stored(value: Any, kind: int, words: Any, reals: Any) -> Any:
    """`value` rounded to the stored type, to nearest even. `words` and `reals` are the same memory."""
    if kind == FLOAT32:
        return value
    if kind == BFLOAT16:
        reals[0] = min(max(value, -_MOST_BFLOAT16), _MOST_BFLOAT16)
        word = words[0]
        words[0] = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) & np.uint32(
            0xFFFF0000
        )
        return reals[0]
    step = np.float32(2.0) ** -24  # below 2**-14, float16 has equal steps
    if abs(value) >= np.float32(2.0) ** -14:
        reals[0] = value
        exponent = np.int64((words[0] >> np.uint32(23)) & np.uint32(0xFF)) - 127
        step = np.float32(2.0 ** (exponent - 10))
    made = np.float32(np.rint(value / step) * step)
    return min(max(made, np.float32(-65504.0)), np.float32(65504.0))


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def round_group(
    weight: Floats,
    inverse: Floats,
    importance: Floats,
    turns: int,
    levels: int,
    steps: int,
    kind: int,
    codes: Bytes,
    scales: Floats,
    biases: Floats,
    errors: Floats,
) -> None:
    """Rounds one group of columns of every row, and feeds each column's error to the columns that follow.

    weight: [rows, group], the values with the error of earlier groups fed in. It is overwritten.
    inverse: [group, group], the part of the upper Cholesky factor of the inverse moments.
    importance: [group]. levels: the largest code. steps: how many shrunken ranges are tried.
    turns: how often codes and grid are solved for in turn.
    codes: [rows, group]. scales, biases: [rows]. errors: [rows, group], what later groups are to take up.
    """
    rows, group = weight.shape
    words = np.empty(1, np.uint32)
    reals = words.view(np.float32)
    for row in range(rows):
        values = weight[row]
        low, high = values[0], values[0]
        for j in range(1, group):
            low = min(low, values[j])
            high = max(high, values[j])
        total, mean = np.float32(0), np.float32(0)
        for j in range(group):
            total += importance[j]
            mean += importance[j] * values[j]
        span = high / np.float32(levels) - low / np.float32(levels)
        middle = low / np.float32(2) + high / np.float32(2)
        least = _LEAST_FLOAT16 if kind == FLOAT16 else _LEAST
        best = np.float32(np.inf)
        best_scale = max(_stored(span, kind, words, reals), least) if span > 0 else np.float32(1)
        best_bias = _stored(low, kind, words, reals)
        for step in range(steps if span > 0 else 0):
            shrink = np.float32(1) - np.float32(step) * np.float32(0.6) / np.float32(steps)
            start = middle - shrink * (middle - low)
            scale = shrink * span
            if scale <= 0:
                scale = np.float32(1)
            for _ in range(turns):  # codes for this grid, then the grid of least error for these codes
                up = np.float32(1) / scale
                c1, c2, cw = np.float32(0), np.float32(0), np.float32(0)
                for j in range(group):
                    code = np.rint((values[j] - start) * up)
                    code = min(max(code, np.float32(0)), np.float32(levels))
                    h = importance[j]
                    c1 += h * code
                    c2 += h * code * code
                    cw += h * code * values[j]
                below = total * c2 - c1 * c1
                if below <= np.float32(1e-6) * total * c2:
                    break
                scale = (total * cw - c1 * mean) / below
                start = (mean - scale * c1) / total
                if scale <= 0:
                    break
            scale = max(_stored(scale, kind, words, reals), least)
            start = _stored(start, kind, words, reals)
            up = np.float32(1) / scale
            loss = np.float32(0)
            for j in range(group):
                code = np.rint((values[j] - start) * up)
                code = min(max(code, np.float32(0)), np.float32(levels))
                off = values[j] - start - scale * code
                loss += importance[j] * off * off
            if loss < best:
                best, best_scale, best_bias = loss, scale, start
        scales[row], biases[row] = best_scale, best_bias
        up = np.float32(1) / best_scale
        for j in range(group):
            code = np.rint((values[j] - best_bias) * up)
            code = min(max(code, np.float32(0)), np.float32(levels))
            codes[row, j] = np.uint8(code)
            off = (values[j] - best_bias - best_scale * code) / inverse[j, j]
            errors[row, j] = off
            for k in range(j + 1, group):
                values[k] -= off * inverse[j, k]


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def choose_codes(slope: Floats, moments: Floats, levels: int, codes: Bytes, scales: Floats) -> None:
    """Gives each code of one group, one after the other, the value of least error beside all others.

    slope: [rows, group], half the derivative of the error by the values of the group. It is kept true.
    moments: [group, group]. codes: [rows, group], overwritten. scales: [rows].
    """
    rows, group = slope.shape
    for row in range(rows):
        slopes = slope[row]
        for j in range(group):
            old = np.float32(codes[row, j])
            code = np.rint(old - slopes[j] / (moments[j, j] * scales[row]))
            code = min(max(code, np.float32(0)), np.float32(levels))
            if code != old:
                codes[row, j] = np.uint8(code)
                step = (code - old) * scales[row]
                for k in range(group):
                    slopes[k] += step * moments[j, k]


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def fit_grids(
    codes: Floats, moved: Floats, slope: Floats, ones: Any, kind: int, scales: Floats, biases: Floats
) -> None:
    """Gives one group of every row the scale and bias of least error for its codes, in the stored type.

    moved: [rows, group], codes @ moments. slope: as in `choose_codes`. ones: the sum of the moments.
    A scale and a bias stay as they are where no others are better.
    """
    rows, group = codes.shape
    words = np.empty(1, np.uint32)
    reals = words.view(np.float32)
    least = _LEAST_FLOAT16 if kind == FLOAT16 else _LEAST
    for row in range(rows):
        cc, c1, cg, g1 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(group):
            cc += codes[row, j] * moved[row, j]
            c1 += moved[row, j]
            cg += codes[row, j] * slope[row, j]
            g1 += slope[row, j]
        below = cc * ones - c1 * c1
        if not below > np.float32(1e-6) * cc * ones:
            continue
        scale = scales[row] + (g1 * c1 - cg * ones) / below
        scale = max(_stored(scale, kind, words, reals), least)
        more = scale - scales[row]
        bias = _stored(biases[row] - (g1 + more * c1) / ones, kind, words, reals)
        up = bias - biases[row]
        gain = np.float32(2) * (more * cg + up * g1)
        gain += more * more * cc + np.float32(2) * more * up * c1 + up * up * ones
        if gain < 0:
            scales[row], biases[row] = scale, bias
