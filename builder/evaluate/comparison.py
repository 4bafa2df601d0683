"""Whether two targets differ: decided on the same questions, question by question, and by nothing else.

Two rates whose intervals overlap may differ all the same, since both targets met the same questions; and two
figures that look different may not. So: right or wrong answers are compared by McNemar's exact test, losses
and divergences by changing the signs of their paired differences. Of many tests in one table, Holm's method
keeps the chance low that any of them finds what is not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from builder.evaluate.statistics import holm, mcnemar, paired_rates, sign_flip, standard_error, t95

LEVEL = 0.05
# (kind of suite, name of a figure): the rows of these are right (1) or wrong (0).
RATES = frozenset({("choice", "accuracy"), ("choice", "greedy"), ("exact", "rate"), ("generate", "rate")})
# The figures with a row for each question, the main one first: it is compared where nothing is required.
PAIRED: Mapping[str, tuple[str, ...]] = {
    "choice": ("accuracy", "greedy"),
    "exact": ("rate",),
    "generate": ("rate",),
    "perplexity": ("perplexity",),
    "fidelity": ("kl", "agreement"),
}


@dataclass(frozen=True)
class Difference:
    """second - first, in the mean over questions, with its 95 % interval: Newcombe's for
    rates, else Student's.

    `p` is that of the paired test, `adjusted` by Holm's method where it is one of several. `differ`, which
    goes by `adjusted`, is the only ground to call two targets different.
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
    """The rows of a figure in two results of one suite of that kind, in the order of its questions.

    Raises ValueError where the numbers of questions differ.
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
    """The same, each judged as one of so many tests."""
    adjusted = holm([difference.p for difference in differences])
    return [
        replace(difference, adjusted=p, differ=p < LEVEL)
        for difference, p in zip(differences, adjusted, strict=True)
    ]
