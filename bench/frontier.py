"""The line through uniform sizes, and how far below it another variant lies. Pure.

Between two neighbouring uniform sizes the logarithm of the KL is a straight line in bytes. Outside, the
nearest segment goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

LEAST = 1e-12  # a KL of 0 has no logarithm
ROUNDS = 10_000


@dataclass(frozen=True)
class Measured:
    """A variant: the bytes of its shards, and its KL for each held-out row."""

    nbytes: int
    rows: Sequence[float]


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def line(sizes: Sequence[int], divergences: Any, nbytes: int) -> Any:
    """The KL of the line at a size.

    `sizes` grow. The last axis of `divergences` belongs to them. Other axes are kept.
    """
    if len(sizes) < 2 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"a line needs two sizes or more, which grow: {list(sizes)}")
    logs = np.log(np.maximum(divergences, LEAST))
    right = min(max(1, int(np.searchsorted(sizes, nbytes))), len(sizes) - 1)
    left = right - 1
    share = (nbytes - sizes[left]) / (sizes[right] - sizes[left])
    return np.exp(logs[..., left] * (1 - share) + logs[..., right] * share)


def below_line(one: Measured, uniform: Sequence[Measured], *, seed: int = 0, rounds: int = ROUNDS) -> Ratio:
    """The KL of `one` over the KL of the line at its bytes. The interval is a bootstrap over rows.

    Each draw takes rows with replacement, the same rows for `one` and for the uniform variants.
    """
    ordered = sorted(uniform, key=lambda each: each.nbytes)
    sizes = [each.nbytes for each in ordered]
    values = np.array([[*rows] for rows in zip(one.rows, *(each.rows for each in ordered), strict=True)])

    def ratio(means: Any) -> Any:
        return means[..., 0] / line(sizes, means[..., 1:], one.nbytes)

    return _bootstrapped(values, ratio, seed, rounds)


def compared(one: Measured, other: Measured, *, seed: int = 0, rounds: int = ROUNDS) -> Ratio:
    """The KL of `one` over the KL of `other`, with a bootstrap over rows as in `below_line`."""
    values = np.array([[*rows] for rows in zip(one.rows, other.rows, strict=True)])
    return _bootstrapped(values, lambda means: means[..., 0] / np.maximum(means[..., 1], LEAST), seed, rounds)


def _bootstrapped(values: Any, ratio: Any, seed: int, rounds: int) -> Ratio:
    """A ratio of the column means of [row, variant], and its percentiles over draws of rows."""
    count = len(values)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), rounds)
    low, high = np.quantile(ratio(draws @ values / count), (0.025, 0.975))
    return Ratio(float(ratio(values.mean(0))), float(low), float(high))
