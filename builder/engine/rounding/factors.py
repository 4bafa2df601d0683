"""What rounding needs to know of the inputs of a weight, made of their second moments."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's choice
_EXACT = 4096  # columns up to which factors are computed in float64


@dataclass(frozen=True)
class Factors:
    """`factor`: the upper Cholesky factor U of the inverse moments (inverse = Uᵀ U). `damped`: the damped
    moments. Both are None where nothing is known of the inputs.

    `importance`: what one unit of error in a column costs after later columns have made up for it:
    1 / U[j, j]².
    """

    factor: Floats | None
    importance: Floats
    damped: Floats | None


def factors_of(moments: Floats | None, columns: int) -> Factors:
    """Only the ratios of the moments count, so they are divided by their mean: tiny and huge inputs do not
    leave the range of float32.
    """
    mean = 0.0 if moments is None else float(moments.diagonal().mean(dtype=np.float64))
    if moments is None or mean <= 0:
        return Factors(None, np.ones(columns, np.float32), None)
    damped: Any = (moments / mean).astype(np.float64 if columns <= _EXACT else np.float32, copy=False)
    inverse = np.linalg.inv(_root(damped))
    damped = damped.astype(np.float32, copy=False)
    factor = np.ascontiguousarray(inverse, np.float32)
    del inverse
    for row in range(1, columns):  # in place: what lies below the diagonal is no part of the factor
        factor[row, :row] = 0
    importance = (1 / factor.diagonal() ** 2).astype(np.float32)
    return Factors(factor, importance, damped)


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
