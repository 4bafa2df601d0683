"""Decides whether two targets differ, by comparing their answers to the same questions one by one.

Two rates may differ although their intervals overlap, because both targets answered the same questions. Two
figures that look different may not differ. So right and wrong answers are compared by McNemar's exact test.
Losses and divergences are compared by changing the signs of their paired differences. A table has many tests.
Holm's method keeps the chance low that any of them finds a difference that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from builder.evaluate.statistics import holm, mcnemar, paired_rates, sign_flip, standard_error, t95

LEVEL = 0.05
# (kind of suite, name of a figure) of the figures whose rows are right (1) or wrong (0).
RATES = frozenset({("choice", "accuracy"), ("choice", "greedy"), ("exact", "rate"), ("generate", "rate")})
# The figures with a row for each question. The first figure is compared where the model requires none.
PAIRED: Mapping[str, tuple[str, ...]] = {
    "choice": ("accuracy", "greedy"),
    "exact": ("rate",),
    "generate": ("rate",),
    "perplexity": ("perplexity",),
    "fidelity": ("kl", "agreement"),
}


@dataclass(frozen=True)
class Difference:
    """The mean over questions of second - first, with its 95 % interval (rates: Newcombe's, else Student's).

    `p` is the p-value of the paired test. `adjusted` is the p-value after Holm's method, which equals `p` for
    a single test. `differ` compares `adjusted` with LEVEL. Only `differ` says that two targets differ.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p: float
    adjusted: float
    differ: bool

    def __str__(self) -> str:
        if not self.differ:
            return f"no difference shown ({self.n} questions)"
        return f"{self.value:+.3g} ({self.low:+.3g} to {self.high:+.3g}, {self.n} questions)"


def compare(
    kind: str, name: str, first: Sequence[float], second: Sequence[float], *, seed: int = 0
) -> Difference:
    """Compares the rows of the figure `name` in two results of one suite of kind `kind`.

    Both have the order of the suite's questions. `seed` is for the random changes of sign. Raises ValueError
    for different numbers of questions.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} questions against {len(second)}: not the same suite")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n == 0:
        return Difference(0.0, None, None, 0, 1.0, 1.0, False)
    value = math.fsum(differences) / n
    if (kind, name) in RATES:
        right = [row == 1 for row in first], [row == 1 for row in second]
        p = mcnemar(*right)
        low, high = paired_rates(*right)
        return Difference(value, low, high, n, p, p, p < LEVEL)
    p = sign_flip(differences, seed=seed)
    if n == 1:
        return Difference(value, None, None, n, p, p, p < LEVEL)
    half = t95(n - 1) * standard_error(differences)
    return Difference(value, value - half, value + half, n, p, p, p < LEVEL)


def together(differences: Sequence[Difference]) -> list[Difference]:
    """The differences in the same order, each judged as one test among all of them (Holm's method)."""
    adjusted = holm([difference.p for difference in differences])
    return [
        replace(difference, adjusted=p, differ=p < LEVEL)
        for difference, p in zip(differences, adjusted, strict=True)
    ]
