"""The scale and bias of each group, with mlx: `loops` does the same on a CPU."""

from __future__ import annotations

import mlx.core as mx

STEPS = 12  # shrunken ranges that are tried for each group
TURNS = 2  # how often codes and grid are solved for in turn
LEAST_FLOAT16 = 2.0**-24  # the least scale: the least number that float16 holds
LEAST = 2.0**-120  # the least scale of other dtypes, so that 1 / scale is finite


def as_stored(number: mx.array, stored: mx.Dtype) -> mx.array:
    """Float32 numbers rounded to what the stored dtype holds."""
    most = mx.finfo(stored).max
    return mx.clip(number, -most, most).astype(stored).astype(mx.float32)


def least_scale(stored: mx.Dtype) -> float:
    return LEAST_FLOAT16 if stored == mx.float16 else LEAST


def fitted(
    codes: mx.array, slope: mx.array, moments: mx.array, scale: mx.array, bias: mx.array, stored: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """The scale and bias [rows] of one group of least error for its codes. The former where none is better.

    codes: float32 [rows, group]. slope: half the derivative of the error by the values of the group.
    """
    moved = codes @ moments
    ones = moments.sum()
    cc, c1 = (codes * moved).sum(1), moved.sum(1)
    cg, g1 = (codes * slope).sum(1), slope.sum(1)
    below = cc * ones - c1 * c1
    solved = below > 1e-6 * cc * ones
    wanted = scale + mx.where(solved, (g1 * c1 - cg * ones) / mx.where(solved, below, 1), 0)
    new = mx.maximum(as_stored(wanted, stored), least_scale(stored))
    ds = new - scale
    start = as_stored(bias - (g1 + ds * c1) / ones, stored)
    db = start - bias
    gain = 2 * (ds * cg + db * g1) + ds * ds * cc + 2 * ds * db * c1 + db * db * ones
    better = solved & (gain < 0)
    return mx.where(better, new, scale), mx.where(better, start, bias)


def searched(
    values: mx.array, importance: mx.array, levels: float, stored: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """The scale and bias [rows] of least weighted error for the values of one group [rows, group]."""
    low, high = values.min(1), values.max(1)
    middle, span = low / 2 + high / 2, high / levels - low / levels
    total, mean = importance.sum(), (importance * values).sum(1)
    least = least_scale(stored)

    def kept(number: mx.array) -> mx.array:
        return as_stored(number, stored)

    best = mx.full(low.shape, mx.inf)
    best_scale, best_bias = mx.where(span > 0, mx.maximum(kept(span), least), 1), kept(low)
    for step in range(STEPS):
        shrink = 1 - step * 0.6 / STEPS
        bias = middle - shrink * (middle - low)
        scale = shrink * span
        scale = mx.where(scale <= 0, 1, scale)
        for _ in range(TURNS):
            code = mx.clip(mx.round((values - bias[:, None]) / scale[:, None]), 0, levels)
            c1, c2 = (importance * code).sum(1), (importance * code * code).sum(1)
            cw = (importance * code * values).sum(1)
            below = total * c2 - c1 * c1
            solved = below > 1e-6 * total * c2
            scale = mx.where(solved, (total * cw - c1 * mean) / mx.where(solved, below, 1), scale)
            bias = mx.where(solved, (mean - scale * c1) / total, bias)
        scale, bias = mx.maximum(kept(scale), least), kept(bias)
        code = mx.clip(mx.round((values - bias[:, None]) / scale[:, None]), 0, levels)
        off = values - bias[:, None] - scale[:, None] * code
        loss = (importance * off * off).sum(1)
        better = (loss < best) & (span > 0)
        best = mx.where(better, loss, best)
        best_scale, best_bias = mx.where(better, scale, best_scale), mx.where(better, bias, best_bias)
    return best_scale, best_bias
