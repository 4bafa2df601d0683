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

On a CPU compiled loops do the work. Where numba is not there, and on a GPU, `stacks` does the same with mlx.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.engine.blas import numpy_on_one_thread
from builder.engine.rounding.factors import Factors, Floats, factors_of
from builder.engine.rounding.grid import STEPS, TURNS
from builder.engine.rounding.stacks import round_stack
from builder.spec.types import Quantization

Stored = npt.NDArray[Any]  # float32, float16, or bfloat16 as uint16

SWEEPS = 3  # how often all codes and grids are chosen again
_PIECE = 256  # rows that one thread packs at a time
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

        def pack(at: int) -> None:
            piece = self.codes[at : at + _PIECE]
            stream = ((piece[..., None] >> shifts) & np.uint8(1)).reshape(len(piece), -1)
            out[at : at + _PIECE] = np.packbits(stream, axis=1, bitorder="little").view("<u4")

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(pack, range(0, rows, _PIECE)))
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


def compiles() -> bool:
    """Whether compiled loops round here: on a CPU with numba."""
    return find_spec("numba") is not None and mx.default_device() == mx.Device(mx.cpu)


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
        if compiles() if compiled is None else compiled:
            return round_factored(weight, factors_of(moments, weight.shape[1]), how, dtype, again=again)
        stack = mx.array(_as_floats(weight))[None]
        made = round_stack(stack, [moments], how, dtype, SWEEPS if again else 0)
    return Rounded(*(np.array(each[0]) for each in (made.codes, made.scales, made.biases)))


def round_factored(
    weight: Stored, factors: Factors, how: Quantization, dtype: mx.Dtype, *, again: bool = True
) -> Rounded:
    """`round_weight` by compiled loops, for moments that are factored already, on all cores.

    numpy is to multiply on one thread (`numpy_on_one_thread`).
    """
    rows, columns = weight.shape
    groups = columns // how.group_size
    made = Rounded(
        np.empty((rows, columns), np.uint8),
        np.empty((rows, groups), np.float32),
        np.empty((rows, groups), np.float32),
    )
    pieces = [slice(at, at + _ROWS) for at in range(0, rows, _ROWS)]

    def run(piece: slice) -> None:
        part = Rounded(made.codes[piece], made.scales[piece], made.biases[piece])
        _by_loops(_as_floats(weight[piece]), factors.factor, factors.importance, how, _KINDS[dtype], part)
        if again and factors.damped is not None:
            _again_by_loops(_as_floats(weight[piece]), factors.damped, how, _KINDS[dtype], part)

    with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1)) as pool:
        list(pool.map(run, pieces))
    return made


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
