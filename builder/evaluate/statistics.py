"""How far a figure can be trusted: intervals, and paired tests of two targets on the same questions.

A rate has Wilson's interval (1927). A rate of clustered observations uses the effective number of Korn and
Graubard (1998). A mean of clusters uses Student's t. Two paired rates are compared by McNemar's exact test
(1947) and Newcombe's interval (1998). Other paired differences are tested by Fisher's randomization test.
Holm's method (1979) adjusts many tests. numpy is imported only where many random numbers are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Z95 = 1.959963984540054
_EXACT = 15  # up to so many differences, all changes of sign are examined
_ROUNDS = 20_000  # for more differences, random changes of sign. So no p is below 1 / 20 001
_AT_ONCE = 1 << 22  # random numbers in memory


@dataclass(frozen=True)
class Figure:
    """A measured value from n observations, with its 95 % interval, or None for both ends.

    Where the tokens of an answer are a cluster, n counts tokens and `clusters` counts answers.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, or None if there is none or if it says nothing (no width, or both ends infinite)."""
        if self.low is None or self.high is None or not self.low < self.high:
            return None
        return (self.low, self.high) if math.isfinite(self.low) or math.isfinite(self.high) else None

    @property
    def counted(self) -> str:
        """What the value comes from: "120" or "1917 tokens of 120 answers"."""
        return str(self.n) if self.clusters is None else f"{self.n} tokens of {self.clusters} answers"


def rate(hits: Sequence[bool]) -> Figure:
    """The share of hits, with Wilson's interval."""
    low, high = wilson(sum(hits), len(hits))
    return Figure(sum(hits) / len(hits) if hits else math.nan, low, high, len(hits))


def clustered_rate(hits: Sequence[bool], groups: Sequence[int]) -> Figure:
    """The share of hits that come in clusters, with Wilson's interval for their effective number.

    `groups[i]` is the cluster of hit i. The effective number is p (1 - p) / (standard error of clusters)^2,
    and less for few clusters (Student's t). If all hits are equal, it is the number of clusters. Source: Korn
    and Graubard 1998.
    """
    n, clusters = len(hits), len(set(groups))
    if clusters < 2:
        return Figure(sum(hits) / n if n else math.nan, None, None, n, clusters)
    share, error = sum(hits) / n, standard_error([float(hit) for hit in hits], groups)
    worth = share * (1 - share) / error**2 if error else clusters
    worth = min(n, max(1.0, worth)) * (Z95 / t95(clusters - 1)) ** 2
    low, high = wilson(share * worth, worth)
    return Figure(share, low, high, n, clusters)


def mean(values: Sequence[float], groups: Sequence[int] | None = None) -> Figure:
    """The mean, with Student's interval. The interval does not go below 0 if no value is below 0.

    `groups[i]` is the cluster (row) of value i. Tokens of one answer are not independent, so the standard
    error is computed over clusters.
    """
    n = len(values)
    clusters = n if groups is None else len(set(groups))
    told = None if groups is None else clusters
    if n == 0:
        return Figure(math.nan, None, None, 0, told)
    middle = math.fsum(values) / n
    if clusters < 2:
        return Figure(middle, None, None, n, told)
    half = t95(clusters - 1) * standard_error(values, groups)
    low = middle - half
    return Figure(middle, max(low, 0.0) if min(values) >= 0 else low, middle + half, n, told)


def standard_error(values: Sequence[float], groups: Sequence[int] | None = None) -> float:
    """The standard error of the mean, over clusters if `groups` is given. inf for a single cluster."""
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


@lru_cache
def t95(degrees: int) -> float:
    """The value that Student's |t| exceeds with a probability of 5 %, for `degrees` of freedom.

    Found by bisection of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    if degrees > 10_000:
        return Z95 * (1 + (Z95 * Z95 + 1) / (4 * degrees))
    low, high = 1.0, 20.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < 0.95 else (low, middle)
    return high


def _inside(t: float, degrees: int) -> float:
    """The probability that Student's |t| is below `t`."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for at in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (at - 1) / at
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927). [0, 1] for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == n else min(1.0, centre + half)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value of McNemar's test: are two targets right equally often?"""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n, least = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1  # integers, because 2^n overflows a float from n = 1024 on
    for k in range(least + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, tail / (1 << max(n - 1, 0)))


def paired_rates(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of the second rate minus the first (Newcombe 1998, method 10, for paired rates)."""
    n = len(first)
    one, other = sum(first), sum(second)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    spread = one * (n - one) * other * (n - other)
    tie = n * both - one * other
    phi = (max(0.0, tie - n / 2) if tie > 0 else tie) / math.sqrt(spread) if spread else 0.0
    (a, (a_low, a_high)), (b, (b_low, b_high)) = ((hits / n, wilson(hits, n)) for hits in (one, other))

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    return b - a - reach(b - b_low, a_high - a), b - a + reach(b_high - b, a - a_low)


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """The two-sided p-value of Fisher's randomization test: could each difference have the other sign?

    For up to 15 differences, all changes of sign are examined. For more, 20 000 random ones are. p cannot be
    below 0.05 for fewer than six differences.
    """
    import numpy as np

    values = np.array([value for value in differences if value], dtype=np.float64)
    if len(values) == 0:
        return 1.0
    least = abs(values.sum()) - 1e-12 * abs(values).sum()  # sums that differ by rounding count as equal
    if len(values) <= _EXACT:
        codes = np.arange(2 ** (len(values) - 1))[:, None]  # half of them: the others mirror these
        flipped = codes >> np.arange(len(values)) & 1
        return float(np.mean(_at_least(flipped, values, least)))
    draw, found, step = np.random.default_rng(seed), 0, max(1, _AT_ONCE // len(values))
    for start in range(0, _ROUNDS, step):
        size = (min(step, _ROUNDS - start), len(values))
        found += int(_at_least(draw.integers(0, 2, size, dtype=np.int8), values, least).sum())
    return (found + 1) / (_ROUNDS + 1)


def _at_least(flipped: Any, values: Any, least: float) -> Any:
    """For each row of `flipped` (1: sign changed), whether the sum is at least `least` away from 0."""
    return abs(values.sum() - 2 * (flipped @ values)) >= least


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of several tests after Holm's method (1979), in the same order.

    If no difference exists, the chance that any of them is below 0.05 is at most 5 %.
    """
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[at]))
        adjusted[at] = least
    return adjusted


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least a share of `share` of the values do not exceed. nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def clustered_percentile(
    values: Sequence[float], groups: Sequence[int], share: float, *, seed: int = 0, rounds: int = 1000
) -> Figure:
    """A percentile with a bootstrap interval. Whole clusters are drawn, each with all of its values.

    `groups[i]` is the cluster of value i.
    """
    import numpy as np

    value = percentile(values, share)
    names, cluster = np.unique(np.array(groups, dtype=np.int64), return_inverse=True)
    if len(names) < 2:
        return Figure(value, None, None, len(values), len(names))
    order = np.argsort(np.array(values), kind="stable")
    ordered, cluster = np.array(values)[order], cluster[order]
    draw, found = np.random.default_rng(seed), []
    for _ in range(rounds):
        times = np.bincount(draw.integers(0, len(names), len(names)), minlength=len(names))
        upto = np.cumsum(times[cluster])
        found.append(float(ordered[np.searchsorted(upto, math.ceil(share * upto[-1]))]))
    found.sort()
    ends = found[round(0.025 * (rounds - 1))], found[round(0.975 * (rounds - 1))]
    return Figure(value, min(*ends, value), max(*ends, value), len(values), len(names))
