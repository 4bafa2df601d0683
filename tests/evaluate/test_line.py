"""The line through uniform variants, and the ratio of another variant to it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.frontier import Measured, below_line
from builder.evaluate.line import Point, beside_line, line_at

SIZES = (300, 400, 500, 600)
UNIFORM = [Point(size, kl) for size, kl in zip(SIZES, (1.6, 0.4, 0.1, 0.025), strict=True)]  # a quarter each


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (300, 1.6),
        (600, 0.025),
        (450, 0.2),  # in the middle, the geometric mean
        (425, 0.4 * 0.25**0.25),
        (299, None),  # nothing is said outside
        (200, None),
        (601, None),
    ],
)
def test_the_line_is_straight_in_bytes_and_the_logarithm(nbytes: int, expected: float | None) -> None:
    assert line_at(UNIFORM, nbytes) == (expected and pytest.approx(expected))
    assert line_at(UNIFORM[::-1], nbytes) == line_at(UNIFORM, nbytes)


def test_some_bytes_of_another_config_do_not_leave_the_line() -> None:
    ends = [Point(60_000_000, 1.0), Point(90_000_000, 0.1)]
    assert line_at(ends, 60_000_000 - 200) == pytest.approx(1.0)
    assert line_at(ends, 90_000_000 + 200) == pytest.approx(0.1)
    assert line_at(ends, 60_000_000 - 200_000) is None


@pytest.mark.parametrize(
    "uniform",
    [[], [Point(400, 0.4)], [Point(400, 0.4), Point(400, 0.3)], [Point(400, 0.4), Point(500, 0.0)]],
)
def test_a_line_needs_two_sizes_with_a_kl(uniform: list[Point]) -> None:
    assert line_at(uniform, 400) is None
    assert beside_line(Point(400, 0.2), uniform) is None


def test_of_two_variants_of_one_size_the_better_is_on_the_line() -> None:
    assert line_at([Point(400, 0.4), Point(400, 0.3), Point(500, 0.1)], 400) == pytest.approx(0.3)


def test_a_ratio_without_rows_has_no_interval() -> None:
    found = beside_line(Point(450, 0.05), UNIFORM)
    assert found is not None
    assert (found.line, found.value) == (pytest.approx(0.2), pytest.approx(0.25))
    assert (found.low, found.high) == (None, None)
    assert beside_line(Point(450, 0.0), UNIFORM) is None


def rows(mean: float, seed: int, count: int = 120) -> tuple[float, ...]:
    drawn = np.random.default_rng(seed).exponential(1.0, count)
    return tuple(float(each) for each in drawn / drawn.mean() * mean)


def with_rows(point: Point, seed: int, count: int = 120) -> Point:
    return Point(point.nbytes, point.kl, rows(point.kl, seed, count))


def test_rows_that_are_hard_for_all_alike_do_not_widen_the_interval() -> None:
    found = beside_line(with_rows(Point(450, 0.05), 0), [with_rows(each, 0) for each in UNIFORM])
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


@pytest.mark.parametrize("nbytes", [400, 425, 450, 600])
def test_the_interval_is_that_of_a_bootstrap_over_rows(nbytes: int) -> None:
    """bench/frontier.py draws rows at random. With 120 rows both intervals agree."""
    one = with_rows(Point(nbytes, 0.08), 9)
    line = [with_rows(each, at) for at, each in enumerate(UNIFORM)]
    found = beside_line(one, line)
    drawn = below_line(Measured(nbytes, one.rows), [Measured(each.nbytes, each.rows) for each in line])
    assert found is not None
    assert found.value == pytest.approx(drawn.value)
    assert (found.low, found.high) == (
        pytest.approx(drawn.low, rel=0.05),
        pytest.approx(drawn.high, rel=0.05),
    )


@pytest.mark.parametrize(("count", "of_the_line"), [(120, 119), (1, 1), (0, 120)])
def test_other_or_too_few_questions_give_no_interval(count: int, of_the_line: int) -> None:
    one = Point(450, 0.08, rows(0.08, 1, count) if count else ())
    found = beside_line(one, [with_rows(each, 2, of_the_line) for each in UNIFORM])
    assert found is not None
    assert (found.low, found.high) == (None, None)
