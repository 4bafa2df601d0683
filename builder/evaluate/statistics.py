"""How far a figure can be trusted: intervals, and paired tests of two targets on the same questions.

Wilson 1927 (interval of a rate), McNemar 1947 in its exact form, the paired bootstrap. Standard library only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval, from n observations."""

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def rate(hits: Sequence[bool]) -> Figure:
    """The share of hits, with Wilson's interval."""
    low, high = wilson(sum(hits), len(hits))
    return Figure(sum(hits) / len(hits) if hits else math.nan, low, high, len(hits))


def mean(values: Sequence[float], groups: Sequence[int] | None = None) -> Figure:
    """The mean, with the normal interval of its standard error.

    `groups[i]` says which cluster (row) value i belongs to: tokens of one answer are not independent, so
    the error is that of clusters.
    """
    n = len(values)
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    middle = math.fsum(values) / n
    half = Z95 * standard_error(values, groups)
    return Figure(middle, middle - half, middle + half, n)


def standard_error(values: Sequence[float], groups: Sequence[int] | None = None) -> float:
    """Of the mean; of clusters of values when `groups` names them. inf from one cluster."""
    n = len(values)
    middle = math.fsum(values) / n
    sums: dict[int, float] = {}
    for index, value in enumerate(values):
        group = index if groups is None else groups[index]
        sums[group] = sums.get(group, 0.0) + (value - middle)
    clusters = len(sums)
    if clusters < 2:
        return math.inf
    variance = math.fsum(total * total for total in sums.values()) * clusters / (clusters - 1)
    return math.sqrt(variance) / n


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate; [0, 1] from nothing."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == n else min(1.0, centre + half)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p that two targets answer the same questions equally well."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, tail / float(2 ** max(n - 1, 0)))


def bootstrap(differences: Sequence[float], *, seed: int = 0, rounds: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of paired differences."""
    draw = random.Random(seed)
    n = len(differences)
    means = sorted(math.fsum(draw.choices(differences, k=n)) / n for _ in range(rounds))
    return means[round(0.025 * (rounds - 1))], means[round(0.975 * (rounds - 1))]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
