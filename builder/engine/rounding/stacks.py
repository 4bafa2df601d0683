"""Rounds stacks of weights with mlx: on a GPU, and where numba is not there.

`builder.engine.rounding.weight` says what is computed. A GPU takes some microseconds for each operation,
however small it is. So all experts of a layer are rounded together, one column of all rows after the other,
and nothing waits for the GPU before a stack is done. mx.compile was tried on an H200: compiling what is done
with a column took 25 s and saved no time, and compiling a group of columns did not end in a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.engine.rounding.factors import Factors, Floats, factors_of
from builder.engine.rounding.grid import fitted, searched
from builder.spec.types import Quantization

_ROWS = 2**15  # rows that are rounded at a time, of all weights of a stack together
_FACTORS = 2**26  # numbers in the factors that are held at a time
_PACKED = 2**22  # codes that are packed at a time


@dataclass(frozen=True)
class Stack:
    """Rounded weights: `codes` uint8 [weights, rows, columns], `scales` and `biases` [weights, rows, groups].

    Scales and biases are float32 numbers that the stored dtype holds.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array


def round_stack(
    weight: mx.array, moments: Iterable[Floats | None], how: Quantization, dtype: mx.Dtype, sweeps: int
) -> Stack:
    """Rounds each weight of a stack [weights, rows, columns] for the moments of its inputs.

    sweeps: how often all codes and grids are chosen again. Scales and biases are numbers of `dtype`.
    """
    columns = weight.shape[2]
    at, made = 0, []
    left = iter(moments)
    while some := list(islice(left, max(1, _FACTORS // columns**2))):
        for known, factors in _alike(_all_factors(some, columns)):
            part = weight[at : at + len(factors)]
            at += len(factors)
            made.append(_joined([*_pieces(part, factors, how, dtype, sweeps if known else 0)], 1))
    return _joined(made, 0)


def packed(codes: mx.array, bits: int) -> mx.array:
    """Codes [..., columns] as mx.quantize packs them, uint32 [..., words]: the lowest bits first."""
    flat = codes.reshape(-1, codes.shape[-1])
    height = max(1, _PACKED // flat.shape[1])
    places, words = mx.arange(bits, dtype=mx.uint8), mx.arange(32, dtype=mx.uint32)
    made = []
    for at in range(0, flat.shape[0], height):
        some = (flat[at : at + height, :, None] >> places) & 1
        some = some.reshape(some.shape[0], -1, 32).astype(mx.uint32)
        made.append((some << words).sum(-1))
        mx.eval(made[-1])
    return mx.concatenate(made).reshape(*codes.shape[:-1], -1)


def _all_factors(moments: Sequence[Floats | None], columns: int) -> list[Factors]:
    with ThreadPoolExecutor(min(len(moments), os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(factors_of, columns=columns), moments))


def _alike(factors: Sequence[Factors]) -> Iterator[tuple[bool, list[Factors]]]:
    """Neighbours of whose inputs something is known, or nothing."""
    found: list[Factors] = []
    for each in factors:
        if found and (each.factor is None) != (found[-1].factor is None):
            yield found[-1].factor is not None, found
            found = []
        found.append(each)
    yield found[-1].factor is not None, found


def _pieces(
    weight: mx.array, factors: Sequence[Factors], how: Quantization, dtype: mx.Dtype, sweeps: int
) -> Iterator[Stack]:
    height = max(1, _ROWS // weight.shape[0])
    factor, damped = (_stacked([getattr(each, n) for each in factors]) for n in ("factor", "damped"))
    importance = mx.array(np.stack([each.importance for each in factors]))
    for at in range(0, weight.shape[1], height):
        wanted = weight[:, at : at + height].astype(mx.float32)
        codes, scales, biases = _first(wanted, factor, importance, how, dtype)
        if damped is not None:
            _again(wanted, damped, how, dtype, sweeps, codes, scales, biases)
        stack = Stack(
            mx.concatenate(codes, -1).astype(mx.uint8), mx.concatenate(scales, -1), mx.concatenate(biases, -1)
        )
        mx.eval(stack.codes, stack.scales, stack.biases)
        yield stack


def _stacked(arrays: Sequence[npt.NDArray[Any] | None]) -> mx.array | None:
    known = [each for each in arrays if each is not None]
    return mx.array(np.stack(known)) if known else None


def _joined(parts: Sequence[Stack], axis: int) -> Stack:
    names = ("codes", "scales", "biases")
    return (
        parts[0]
        if len(parts) == 1
        else Stack(*(mx.concatenate([getattr(each, name) for each in parts], axis) for name in names))
    )


Arrays = list[mx.array]  # one for each group of columns


def _first(
    weight: mx.array, factor: mx.array | None, importance: mx.array, how: Quantization, dtype: mx.Dtype
) -> tuple[Arrays, Arrays, Arrays]:
    """Codes, scales and biases, with the error of each column fed to the columns that follow."""
    group = how.group_size
    levels = mx.array(2.0**how.bits - 1)
    codes, scales, biases = [], [], []
    left = weight
    for start in range(0, weight.shape[2], group):
        stop = start + group
        inverse = mx.eye(group)[None] if factor is None else factor[:, start:stop, start:stop]
        values, left = left[..., :group], left[..., group:]
        scale, bias = (each[..., None] for each in searched(values, importance[:, start:stop], levels, dtype))
        found, errors = [], []
        for j, (pivot, later) in enumerate(zip(_pivots(inverse), _rows(mx.triu(inverse, 1)), strict=True)):
            code, error, values = _feed(values, values[..., j : j + 1], scale, bias, pivot, later, levels)
            found.append(code)
            errors.append(error)
        codes.append(mx.concatenate(found, -1))
        scales.append(scale)
        biases.append(bias)
        if factor is not None and stop < weight.shape[2]:
            left = left - mx.concatenate(errors, -1) @ factor[:, start:stop, stop:]
        _begin(codes[-1], scale, bias, left)
    return codes, scales, biases


def _again(
    weight: mx.array,
    damped: mx.array,
    how: Quantization,
    dtype: mx.Dtype,
    sweeps: int,
    codes: Arrays,
    scales: Arrays,
    biases: Arrays,
) -> None:
    """Chooses all codes, scales and biases again, for the least error e moments eᵀ of each row."""
    group = how.group_size
    levels = mx.array(2.0**how.bits - 1)
    made = [c * s + b for c, s, b in zip(codes, scales, biases, strict=True)]
    errors = mx.concatenate(made, -1) - weight
    for _ in range(sweeps):
        for number in range(len(codes)):
            at = slice(number * group, (number + 1) * group)
            slope, within, scale = errors @ damped[:, :, at], damped[:, at, at], scales[number]
            old, found = _columns(codes[number]), []
            for j, (pivot, row) in enumerate(zip(_pivots(within), _rows(within), strict=True)):
                code, slope = _choose(slope, slope[..., j : j + 1], old[j], scale, pivot, row, levels)
                found.append(code)
            code = mx.concatenate(found, -1)
            scale, bias = fitted(code, slope, within, scale[..., 0], biases[number][..., 0], dtype)
            codes[number], scales[number], biases[number] = code, scale[..., None], bias[..., None]
            errors[..., at] = code * scales[number] + biases[number] - weight[..., at]
            _begin(code, scale, bias, errors)


def _feed(
    values: mx.array,
    column: mx.array,
    scale: mx.array,
    bias: mx.array,
    pivot: mx.array,
    later: mx.array,
    levels: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """Rounds a column. Returns its codes, its errors, and the values of the group with the errors fed in."""
    code = mx.clip(mx.round((column - bias) / scale), 0, levels)
    error = (column - bias - scale * code) / pivot
    return code, error, values - error * later


def _choose(
    slope: mx.array,
    own: mx.array,
    old: mx.array,
    scale: mx.array,
    pivot: mx.array,
    row: mx.array,
    levels: mx.array,
) -> tuple[mx.array, mx.array]:
    """Chooses the codes of a column again. `own`: the column of the slope. Returns codes and slope."""
    code = mx.clip(mx.round(old - own / (pivot * scale)), 0, levels)
    return code, slope + (code - old) * scale * row


def _columns(array: mx.array) -> list[mx.array]:
    return list(mx.split(array, array.shape[-1], -1))


def _rows(array: mx.array) -> list[mx.array]:
    return list(mx.split(array, array.shape[1], 1))


def _pivots(array: mx.array) -> list[mx.array]:
    """The numbers on the diagonal of each matrix, each [weights, 1, 1]."""
    return _columns(mx.diagonal(array, axis1=1, axis2=2)[:, None])


def _begin(*arrays: mx.array) -> None:
    """Computes in the background, while the next group is described."""
    begin: Any = mx.async_eval
    begin(*arrays)
