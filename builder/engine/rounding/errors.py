"""How large the error of a weight is in each setting that it may have, measured on some of its rows.

Only the ratios count: they say what a weight costs in other settings than the one that was measured. A base
that was unpacked from a quantized file may have settings without any error: they are found here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from builder.engine.arrays import Values
from builder.engine.rounding.lookup import unrounded
from builder.engine.rounding.points import Opened
from builder.engine.rounding.weight import as_numpy, round_weight
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
    for block in opened.blocks.values():
        values: Values = block.values(dtype)
        for name in values:
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and path in choices:
                rows = _some(values.array(name))
                found[path] = {how: _error(rows, how, calibrated) for how in choices[path]}
        block.forget()
    return found


def _some(weight: mx.array) -> mx.array:
    """Some rows of a weight, or of a stack of experts."""
    rows = weight.reshape(-1, weight.shape[-1])
    made = rows[:: max(1, rows.shape[0] // ROWS)]
    mx.eval(made)
    return made


def _error(rows: mx.array, how: Quantization, calibrated: bool) -> float:
    exact: Any = np.array(rows.astype(mx.float32))
    if calibrated:
        made: Any = round_weight(as_numpy(rows), None, how, rows.dtype).weight()
    else:
        codes, scales, biases = mx.quantize(rows, group_size=how.group_size, bits=how.bits)
        made = np.array(unrounded(codes, scales, biases, how))
    size = float((exact**2).sum(dtype=np.float64))
    return float(((made - exact) ** 2).sum(dtype=np.float64)) / size if size else 0.0
