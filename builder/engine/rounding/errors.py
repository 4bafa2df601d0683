"""How large the error of a weight is in each setting that it may have, measured on some of its rows.

Only the ratios count: they say what a weight costs in other settings than the one that was measured. A base
that was unpacked from a quantized file may have settings without any error: they are found here too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mlx.core as mx
import numpy as np

from builder.engine.arrays import Values
from builder.engine.blas import numpy_on_one_thread
from builder.engine.rounding.factors import Floats
from builder.engine.rounding.lookup import unrounded
from builder.engine.rounding.points import Opened
from builder.engine.rounding.weight import Stored, as_numpy, compiles, round_weight
from builder.spec.types import Quantization

ROWS = 64  # of each weight, evenly spread

Errors = dict[str, dict[Quantization, float]]


def errors(
    opened: Opened, choices: Mapping[str, Sequence[Quantization]], dtype: mx.Dtype | None, calibrated: bool
) -> Errors:
    """Path -> setting -> squared error, relative to the squared weight. One block is in memory.

    calibrated: the grid of each group is searched, as calibrated rounding does, instead of taken from the
    least and the largest value.
    """
    found: Errors = {}
    cores = (os.cpu_count() or 1) if calibrated and compiles() else 1  # mlx's arrays stay on this thread
    with numpy_on_one_thread(), ThreadPoolExecutor(cores) as pool:
        each = pool.map if cores > 1 else map
        for block in opened.blocks.values():
            values: Values = block.values(dtype)
            for name in values:
                path, _, leaf = name.rpartition(".")
                if leaf == "weight" and path in choices:
                    rows = _some(values.array(name))
                    rounded = (
                        partial(_searched, as_numpy(rows), rows.dtype)
                        if calibrated
                        else partial(_nearest, rows)
                    )
                    error = partial(_relative, np.array(rows.astype(mx.float32)), rounded)
                    found[path] = dict(zip(choices[path], each(error, choices[path]), strict=True))
            block.forget()
    return found


def _some(weight: mx.array) -> mx.array:
    """Some rows of a weight, or of a stack of experts."""
    rows = weight.reshape(-1, weight.shape[-1])
    made = rows[:: max(1, rows.shape[0] // ROWS)]
    mx.eval(made)
    return made


def _searched(rows: Stored, dtype: mx.Dtype, how: Quantization) -> Floats:
    return round_weight(rows, None, how, dtype).weight()


def _nearest(rows: mx.array, how: Quantization) -> Floats:
    codes, scales, biases = mx.quantize(rows, group_size=how.group_size, bits=how.bits)
    return np.asarray(unrounded(codes, scales, biases, how))


def _relative(exact: Floats, rounded: Callable[[Quantization], Floats], how: Quantization) -> float:
    size = float((exact**2).sum(dtype=np.float64))
    return float(((rounded(how) - exact) ** 2).sum(dtype=np.float64)) / size if size else 0.0
