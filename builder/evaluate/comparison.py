"""Whether two targets differ: decided on the same questions, question by question, and by nothing else.

Two rates whose intervals overlap may differ all the same, since both targets met the same questions; and two
figures that look different may not. So: right or wrong answers are compared by McNemar's exact test, losses
and divergences by the bootstrap of their paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.evaluate.statistics import bootstrap, mcnemar

LEVEL = 0.05
RATES = frozenset({"choice", "exact", "generate"})  # kinds of suites whose rows are right (1) or wrong (0)


@dataclass(frozen=True)
class Difference:
    """second - first, in the mean over questions, with its 95 % interval. `p` is McNemar's, None for losses.

    `differ` is the only ground to call two targets different.
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None
    differ: bool

    def __str__(self) -> str:
        if not self.differ:
            return f"no difference shown ({self.n} questions)"
        return f"{self.value:+.3g} ({self.low:+.3g} to {self.high:+.3g}, {self.n} questions)"


def compare(kind: str, first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Difference:
    """The rows of two results of one suite, in the order of its questions. Raises ValueError for others."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} questions against {len(second)}: not the same suite")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n == 0:
        return Difference(0.0, 0.0, 0.0, 0, None, False)
    low, high = bootstrap(differences, seed=seed)
    value = sum(differences) / n
    if kind in RATES:
        p = mcnemar([row == 1 for row in first], [row == 1 for row in second])
        return Difference(value, low, high, n, p, p < LEVEL)
    return Difference(value, low, high, n, None, n > 1 and (low > 0 or high < 0))
