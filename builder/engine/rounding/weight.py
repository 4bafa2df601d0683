"""Rounds one weight so that its outputs change least for given inputs. The format is stock affine.

mx.quantize takes the grid of a group from its minimum and maximum, and rounds each weight for itself. Here
- the range of each group is searched: shrunken ranges are tried, and for the codes of each the scale and the
  bias of least weighted error are solved for (as llama.cpp's make_qkx2_quants does),
- the error of each column is fed forward to the columns that follow, in proportion to how the inputs move
  together (GPTQ, arXiv 2210.17323),
- then all codes, scales and biases are chosen again, one after the other, each for the least error beside all
  others (coordinate descent). This never makes the error larger.
All of this needs the second moments of the inputs. Without moments, the search alone minimizes the error of
the weights themselves.

On a CPU compiled loops do the work. Where numba is not there, and on a GPU, mlx does the same.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.engine.blas import numpy_on_one_thread
from builder.engine.rounding.grid import STEPS, TURNS, fitted, searched
from builder.spec.types import Quantization

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[Any]  # float32, float16, or bfloat16 as uint16

DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's choice
SWEEPS = 3  # how often all codes and grids are chosen again
_EXACT = 4096  # columns up to which factors are computed in float64
_PIECE = 4096  # rows that are packed at a time
_ROWS = 128  # rows that one thread rounds at a time. Fixed, so that the number of cores does not change a bit
_KINDS = {mx.float16: 0, mx.bfloat16: 1, mx.float32: 2}


@dataclass(frozen=True)
class Rounded:
    """A rounded weight: `codes` uint8 [rows, columns], `scales` and `biases` float32 [rows, groups].

    The scales and biases are numbers that the stored dtype holds.
    """

    codes: npt.NDArray[np.uint8]
    scales: Floats
    biases: Floats

    def weight(self) -> Floats:
        """What the codes stand for, float32 [rows, columns]."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, self.scales.shape[1], -1).astype(np.float32)
        made = grouped * self.scales[..., None] + self.biases[..., None]
        return np.asarray(made.reshape(rows, columns))

    def packed(self, bits: int) -> npt.NDArray[np.uint32]:
        """The codes as mx.quantize packs them, uint32 [rows, columns * bits / 32]: bits, lowest first."""
        rows, columns = self.codes.shape
        shifts = np.arange(bits, dtype=np.uint8)
        out = np.empty((rows, columns * bits // 32), np.uint32)
        for at in range(0, rows, _PIECE):
            piece = self.codes[at : at + _PIECE]
            stream = ((piece[..., None] >> shifts) & np.uint8(1)).reshape(len(piece), -1)
            out[at : at + _PIECE] = np.packbits(stream, axis=1, bitorder="little").view("<u4")
        return out


def as_numpy(weight: mx.array) -> Stored:
    """A weight as `round_weight` takes it, without a copy: numpy has no bfloat16."""
    mx.eval(weight)
    return np.asarray(weight.view(mx.uint16) if weight.dtype == mx.bfloat16 else weight)


def _as_floats(some: Stored) -> Floats:
    """Rows of a weight in float32, as a copy."""
    if some.dtype == np.uint16:
        return (some.astype(np.uint32) << 16).view(np.float32)
    return some.astype(np.float32)


def round_weight(
    weight: Stored,
    moments: Floats | None,
    how: Quantization,
    dtype: mx.Dtype,
    *,
    again: bool = True,
    compiled: bool | None = None,
) -> Rounded:
    """Rounds a weight [rows, columns] to `how` (mode affine), with scales and biases of `dtype`.

    weight: float32, float16, or bfloat16 as uint16. Some rows at a time become float32.
    moments: the mean of x xᵀ over the inputs x, float32 [columns, columns].
    again: whether codes and grids are chosen again at the end. compiled: None chooses.
    """
    with numpy_on_one_thread():
        return _rounded(weight, moments, how, dtype, again, compiled)


def _rounded(
    weight: Stored,
    moments: Floats | None,
    how: Quantization,
    dtype: mx.Dtype,
    again: bool,
    compiled: bool | None,
) -> Rounded:
    rows, columns = weight.shape
    factor, importance, damped = _factors(moments, columns)
    if compiled is None:
        compiled = find_spec("numba") is not None and mx.default_device() == mx.Device(mx.cpu)
    work, redo = (_by_loops, _again_by_loops) if compiled else (_by_mlx, _again_by_mlx)
    groups = columns // how.group_size
    made = Rounded(
        np.empty((rows, columns), np.uint8),
        np.empty((rows, groups), np.float32),
        np.empty((rows, groups), np.float32),
    )
    size = _ROWS if compiled else _PIECE
    pieces = [slice(at, at + size) for at in range(0, rows, size)]

    def run(piece: slice) -> None:
        part = Rounded(made.codes[piece], made.scales[piece], made.biases[piece])
        work(_as_floats(weight[piece]), factor, importance, how, _KINDS[dtype], part)
        if again and damped is not None:
            redo(_as_floats(weight[piece]), damped, how, _KINDS[dtype], part)

    if compiled:
        with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1)) as pool:
            list(pool.map(run, pieces))
    else:
        for piece in pieces:
            run(piece)
    return made


def _factors(moments: Floats | None, columns: int) -> tuple[Floats | None, Floats, Floats | None]:
    """The upper Cholesky factor U of the inverse moments (inverse = Uᵀ U), the importance of each column, and
    the damped moments.

    The importance is what one unit of error costs after later columns have made up for it: 1 / U[j, j]².
    Only the ratios of the moments count, so they are divided by their mean: tiny and huge inputs do not leave
    the range of float32.
    """
    mean = 0.0 if moments is None else float(moments.diagonal().mean(dtype=np.float64))
    if moments is None or mean <= 0:
        return None, np.ones(columns, np.float32), None
    damped: Any = (moments / mean).astype(np.float64 if columns <= _EXACT else np.float32, copy=False)
    inverse = np.linalg.inv(_root(damped))
    damped = damped.astype(np.float32, copy=False)
    factor = np.ascontiguousarray(inverse, np.float32)
    del inverse
    for row in range(1, columns):  # in place: what lies below the diagonal is no part of the factor
        factor[row, :row] = 0
    importance = (1 / factor.diagonal() ** 2).astype(np.float32)
    return factor, importance, damped


def _root(moments: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The upper factor R of the damped moments (R Rᵀ), which take the place of `moments`.

    They are damped more where rounding made them indefinite.
    R is the Cholesky factor of the moments read backwards.
    """
    own = moments.diagonal().copy()
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        with suppress(np.linalg.LinAlgError):
            np.fill_diagonal(moments, own + moments.dtype.type(damping))
            return np.asarray(np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1])
    moments[:] = np.eye(len(moments), dtype=moments.dtype)
    return moments


def _by_loops(
    weight: Floats, factor: Floats | None, importance: Floats, how: Quantization, kind: int, out: Rounded
) -> None:
    from builder.engine.rounding.loops import round_group

    group, rows = how.group_size, len(weight)
    codes = np.empty((rows, group), np.uint8)
    scales, biases = np.empty(rows, np.float32), np.empty(rows, np.float32)
    errors = np.empty((rows, group), np.float32)
    unit = np.eye(group, dtype=np.float32)
    for number in range(weight.shape[1] // group):
        at = slice(number * group, (number + 1) * group)
        inverse = unit if factor is None else np.ascontiguousarray(factor[at, at])
        values = np.ascontiguousarray(weight[:, at])
        levels = 2**how.bits - 1
        weights = np.ascontiguousarray(importance[at])
        round_group(values, inverse, weights, TURNS, levels, STEPS, kind, codes, scales, biases, errors)
        out.codes[:, at], out.scales[:, number], out.biases[:, number] = codes, scales, biases
        if factor is not None and at.stop < weight.shape[1]:
            weight[:, at.stop :] -= errors @ factor[at, at.stop :]


def _again_by_loops(weight: Floats, moments: Floats, how: Quantization, kind: int, out: Rounded) -> None:
    """Chooses all codes, scales and biases again, for the least error e moments eᵀ of each row."""
    from builder.engine.rounding.loops import choose_codes, fit_grids

    group, levels = how.group_size, 2**how.bits - 1
    errors = out.weight() - weight
    for _ in range(SWEEPS):
        for number in range(weight.shape[1] // group):
            at = slice(number * group, (number + 1) * group)
            within = np.ascontiguousarray(moments[at, at])
            slope = errors @ np.ascontiguousarray(moments[:, at])
            codes = np.ascontiguousarray(out.codes[:, at])
            scales, biases = out.scales[:, number].copy(), out.biases[:, number].copy()
            choose_codes(slope, within, levels, codes, scales)
            numbers = codes.astype(np.float32)
            fit_grids(numbers, numbers @ within, slope, within.sum(), kind, scales, biases)
            out.codes[:, at], out.scales[:, number], out.biases[:, number] = codes, scales, biases
            errors[:, at] = numbers * scales[:, None] + biases[:, None] - weight[:, at]


def _by_mlx(
    weight: Floats, factor: Floats | None, importance: Floats, how: Quantization, kind: int, out: Rounded
) -> None:
    """What `_by_loops` does, with mlx: for a GPU, and where numba is not there."""
    group, levels = how.group_size, float(2**how.bits - 1)
    stored = next(dtype for dtype, number in _KINDS.items() if number == kind)
    left = mx.array(weight)
    inverse = mx.array(np.eye(weight.shape[1], dtype=np.float32) if factor is None else factor)
    for number in range(weight.shape[1] // group):
        start, stop = number * group, (number + 1) * group
        values = left[:, start:stop]
        scale, bias = searched(values, mx.array(importance[start:stop]), levels, stored)
        codes, errors = [], []
        for j in range(group):
            row = inverse[start + j, start:stop]
            code = mx.clip(mx.round((values[:, j] - bias) / scale), 0, levels)
            error = (values[:, j] - bias - scale * code) / row[j]
            later = mx.where(mx.arange(group) > j, row, 0)
            values = values - error[:, None] * later
            codes.append(code)
            errors.append(error)
        made = mx.stack(codes, 1).astype(mx.uint8)
        if factor is not None and stop < weight.shape[1]:
            rest = left[:, stop:] - mx.stack(errors, 1) @ inverse[start:stop, stop:]
            left = mx.concatenate([left[:, :stop], rest], 1)
        mx.eval(made, scale, bias, left)
        out.codes[:, start:stop] = np.array(made)
        out.scales[:, number], out.biases[:, number] = np.array(scale), np.array(bias)


def _again_by_mlx(weight: Floats, moments: Floats, how: Quantization, kind: int, out: Rounded) -> None:
    """What `_again_by_loops` does, with mlx."""
    group, levels = how.group_size, 2**how.bits - 1
    stored = next(dtype for dtype, number in _KINDS.items() if number == kind)
    wanted, whole = mx.array(weight), mx.array(moments)
    errors = mx.array(out.weight()) - wanted
    for _ in range(SWEEPS):
        for number in range(weight.shape[1] // group):
            start, stop = number * group, (number + 1) * group
            within = whole[start:stop, start:stop]
            slope = errors @ whole[:, start:stop]
            codes = mx.array(out.codes[:, start:stop]).astype(mx.float32)
            scale, bias = mx.array(out.scales[:, number]), mx.array(out.biases[:, number])
            chosen = []
            for j in range(group):
                code = mx.clip(mx.round(codes[:, j] - slope[:, j] / (within[j, j] * scale)), 0, levels)
                slope = slope + ((code - codes[:, j]) * scale)[:, None] * within[j]
                chosen.append(code)
            codes = mx.stack(chosen, 1)
            scale, bias = fitted(codes, slope, within, scale, bias, stored)
            made = codes * scale[:, None] + bias[:, None] - wanted[:, start:stop]
            errors = mx.concatenate([errors[:, :start], made, errors[:, stop:]], 1)
            mx.eval(codes, scale, bias, errors)
            out.codes[:, start:stop] = np.array(codes.astype(mx.uint8))
            out.scales[:, number], out.biases[:, number] = np.array(scale), np.array(bias)
