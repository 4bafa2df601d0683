"""What rounding needs to know of the inputs of a weight, made of their second moments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.engine.rounding.moments import Sum

Floats = npt.NDArray[np.float32]

DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's choice
_EXACT = 4096  # columns up to which factors are computed in float64
_SMALL = 256  # columns that are inverted at once
_SHARED = 2  # neighbours in a block whose factors are kept: query, key and value are given the same inputs


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
    root = _root(damped)
    damped = damped.astype(np.float32, copy=False)
    _invert(root)
    factor = np.ascontiguousarray(root[::-1, ::-1], np.float32)
    del root
    for row in range(1, columns):  # in place: what lies below the diagonal is no part of the factor
        factor[row, :row] = 0
    importance = (1 / factor.diagonal() ** 2).astype(np.float32)
    return Factors(factor, importance, damped)


def factored(inputs: Iterable[tuple[Sum | None, int]]) -> Iterator[Factors]:
    """The factors of each sum of inputs, with the columns that it has, in their order.

    While one is used, the next one is computed on a thread of its own. numpy is to multiply on one thread.
    """
    recent: deque[tuple[object, Future[Factors]]] = deque(maxlen=_SHARED)
    ahead: deque[Future[Factors]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for known, columns in inputs:
            total = known.total if known else None
            job = next((made for other, made in recent if total is not None and other is total), None)
            if job is None:
                job = pool.submit(factors_of, known.mean if known else None, columns)
                recent.append((total, job))
            ahead.append(job)
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _root(moments: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The lower Cholesky factor of the damped moments read backwards. They take the place of `moments`.

    They are damped more where rounding made them indefinite. Read backwards, it is the upper factor R of the
    moments (R Rᵀ), and its inverse is the upper factor of their inverse.
    """
    own = moments.diagonal().copy()
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        with suppress(np.linalg.LinAlgError):
            np.fill_diagonal(moments, own + moments.dtype.type(damping))
            return np.asarray(np.linalg.cholesky(moments[::-1, ::-1]))
    moments[:] = np.eye(len(moments), dtype=moments.dtype)
    return moments.copy()


def _invert(lower: npt.NDArray[Any]) -> None:
    """Puts the inverse of a lower triangular matrix in its place, half by half.

    numpy inverts it as any matrix, with three times as many operations.
    """
    columns = len(lower)
    if columns <= _SMALL:
        lower[:] = np.linalg.inv(lower)
        return
    half = columns // 2
    above, below = lower[:half, :half], lower[half:, half:]
    _invert(above)
    _invert(below)
    lower[half:, :half] = -(below @ (lower[half:, :half] @ above))
