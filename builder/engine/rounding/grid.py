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
    """The scale and bias [weights, rows] of least error for the codes of one group.

    The former where none is better.

    codes: float32 [weights, rows, group]. slope: half the derivative of the error by the values of the group.
    moments: [weights, group, group].
    """
    moved = codes @ moments
    ones = moments.sum((1, 2))[:, None]
    cc, c1 = (codes * moved).sum(-1), moved.sum(-1)
    cg, g1 = (codes * slope).sum(-1), slope.sum(-1)
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
    values: mx.array, importance: mx.array, levels: mx.array, stored: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """The scale and bias [weights, rows] of least weighted error for the values of one group.

    values: [weights, rows, group]. importance: [weights, group]. All shrunken ranges are tried at once.
    """
    low, high = values.min(-1), values.max(-1)
    middle, span = low / 2 + high / 2, high / levels - low / levels
    least = least_scale(stored)
    first_scale, first_bias = (
        mx.where(span > 0, mx.maximum(as_stored(span, stored), least), 1),
        as_stored(low, stored),
    )
    shrink = 1 - mx.arange(STEPS) * (0.6 / STEPS)
    bias = middle[..., None] - shrink * (middle - low)[..., None]  # [weights, rows, steps]
    scale = shrink * span[..., None]
    scale = mx.where(scale <= 0, 1, scale)
    weighted = importance[:, None] * values
    total, mean = importance.sum(-1)[:, None, None], weighted.sum(-1)[..., None]
    each, heavy, values = importance[:, None, None], weighted[..., None, :], values[..., None, :]

    def codes() -> mx.array:
        return mx.clip(mx.round((values - bias[..., None]) / scale[..., None]), 0, levels)

    for _ in range(TURNS):
        code = codes()
        c1, c2, cw = (each * code).sum(-1), (each * code * code).sum(-1), (heavy * code).sum(-1)
        below = total * c2 - c1 * c1
        solved = below > 1e-6 * total * c2
        scale = mx.where(solved, (total * cw - c1 * mean) / mx.where(solved, below, 1), scale)
        bias = mx.where(solved, (mean - scale * c1) / total, bias)
    scale, bias = mx.maximum(as_stored(scale, stored), least), as_stored(bias, stored)
    off = values - bias[..., None] - scale[..., None] * codes()
    loss = mx.where(span[..., None] > 0, (each * off * off).sum(-1), mx.inf)
    best = mx.argmin(loss, -1, keepdims=True)

    def chosen(array: mx.array) -> mx.array:
        return mx.take_along_axis(array, best, -1).squeeze(-1)

    better = chosen(loss) < mx.inf
    return mx.where(better, chosen(scale), first_scale), mx.where(better, chosen(bias), first_bias)
