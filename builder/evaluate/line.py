"""The line through the uniform variants of a model: the KL that plain rounding has at a size. Pure.

Between two neighbouring sizes the logarithm of the KL is straight in bytes. Beyond the smallest and the
largest size there is no line, because nothing was measured there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from builder.evaluate.statistics import standard_error, t95

SLACK = 0.001  # of a size: config.json and the card of two variants with the same bits differ by some bytes


@dataclass(frozen=True)
class Point:
    """A measured variant: its bytes on disk and its KL.

    `rows` are the contributions of each question, whose mean is the KL. Empty where they are not known.
    """

    nbytes: int
    kl: float
    rows: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A variant beside the line at its bytes: the KL of the line, and the variant's KL divided by it.

    `low` and `high` are the ends of the paired 95 % interval, or None.
    """

    line: float
    value: float
    low: float | None
    high: float | None


def line_at(uniform: Sequence[Point], nbytes: int) -> float | None:
    """The KL of the line at a size. None outside of the sizes that were measured."""
    found = _neighbours(uniform, nbytes)
    return None if found is None else _between(*found)


def beside_line(one: Point, uniform: Sequence[Point]) -> Ratio | None:
    """A variant beside the line at its bytes. None where there is no line, or a KL is 0.

    The interval is paired: each question counts in the variant and in both neighbours on the line. It is
    Student's, of the logarithm of the ratio, by the delta method.
    """
    found = _neighbours(uniform, one.nbytes)
    if found is None or one.kl <= 0:
        return None
    left, right, share = found
    line = _between(left, right, share)
    low, high = _interval(one, left, right, share) or (None, None)
    return Ratio(line, one.kl / line, low, high)


def _neighbours(uniform: Sequence[Point], nbytes: int) -> tuple[Point, Point, float] | None:
    """The two points around a size, and how far from the first to the second the size lies, from 0 to 1."""
    points = sorted((point for point in uniform if point.kl > 0), key=lambda point: (point.nbytes, point.kl))
    points = [point for at, point in enumerate(points) if not at or points[at - 1].nbytes < point.nbytes]
    if len(points) < 2:
        return None
    low, high = points[0].nbytes, points[-1].nbytes
    if not low * (1 - SLACK) <= nbytes <= high * (1 + SLACK):
        return None
    inside = min(max(nbytes, low), high)
    right = next(at for at, point in enumerate(points) if at and inside <= point.nbytes)
    one, other = points[right - 1], points[right]
    return one, other, (inside - one.nbytes) / (other.nbytes - one.nbytes)


def _between(left: Point, right: Point, share: float) -> float:
    return math.exp((1 - share) * math.log(left.kl) + share * math.log(right.kl))


def _interval(one: Point, left: Point, right: Point, share: float) -> tuple[float, float] | None:
    """The interval of the ratio. None without rows of the same questions, or with fewer than two of them."""
    count = len(one.rows)
    if count < 2 or count != len(left.rows) or count != len(right.rows):
        return None
    changes = [
        mine / one.kl - (1 - share) * lower / left.kl - share * upper / right.kl
        for mine, lower, upper in zip(one.rows, left.rows, right.rows, strict=True)
    ]
    middle = math.log(one.kl / _between(left, right, share))
    half = t95(count - 1) * standard_error(changes)
    return math.exp(middle - half), math.exp(middle + half)
