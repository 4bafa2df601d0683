"""Against published values and closed forms."""

from __future__ import annotations

import math
import random

import pytest

from builder.evaluate.statistics import (
    Figure,
    clustered_percentile,
    clustered_rate,
    holm,
    mcnemar,
    mean,
    paired_rates,
    percentile,
    rate,
    sign_flip,
    standard_error,
    t95,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 0, 0, 1),
        (0, 10, 0, 0.2775),
        (10, 10, 0.7225, 1),
        (81, 263, 0.2553, 0.3662),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    """The last two are of Newcombe 1998, table I."""
    assert wilson(hits, n) == pytest.approx((low, high), abs=6e-5)


def test_a_rate_carries_its_n() -> None:
    figure = rate([True] * 118 + [False] * 2)
    assert (figure.value, figure.n) == (118 / 120, 120)
    assert figure.interval is not None
    low, high = figure.interval
    assert low < 118 / 120 < high


def test_mcnemar_counts_only_what_differs() -> None:
    same = [True] * 90
    assert mcnemar([*same, True, True], [*same, True, True]) == 1
    assert mcnemar([True] * 6, [False] * 6) == pytest.approx(2 / 64)
    assert mcnemar([True] * 3 + [False] * 3, [False] * 3 + [True] * 3) == 1


def test_tokens_of_one_row_are_one_observation() -> None:
    values, groups = [1.0, 1.0, 3.0, 3.0], [0, 0, 1, 1]
    assert standard_error(values, groups) == pytest.approx(standard_error([1.0, 3.0]))
    assert width(mean(values)) < width(mean(values, groups))
    assert mean(values, groups).counted == "4 tokens of 2 answers"
    assert math.isinf(standard_error([1.0]))


def width(figure: Figure) -> float:
    assert figure.interval is not None
    return figure.interval[1] - figure.interval[0]


def test_one_observation_has_no_interval() -> None:
    one = mean([3.0]), mean([1.0, 3.0], [0, 0]), clustered_rate([True, False], [0, 0])
    assert [figure.interval for figure in (*one, clustered_percentile([1.0, 2.0], [0, 0], 0.99))] == [
        None
    ] * 4
    assert [figure.low for figure in one] == [None] * 3


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (10, 2.2281), (119, 1.9801)],
)
def test_student(degrees: int, quantile: float) -> None:
    assert t95(degrees) == pytest.approx(quantile, abs=6e-5)
    assert t95(10_001) == pytest.approx(t95(10_000), abs=1e-7)


def test_means_of_five_cover_as_often_as_they_say() -> None:
    """The normal interval covers 88 times of 100."""
    draw, covered = random.Random(2), 0
    for _ in range(2000):
        interval = mean([draw.gauss(0, 1) for _ in range(5)]).interval
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 0.935 < covered / 2000 < 0.965


def test_what_is_never_negative_has_no_interval_below_zero() -> None:
    assert mean([0.0, 0.0, 5.0]).low == 0
    low = mean([0.0, 0.0, 5.0, -1.0]).low
    assert low is not None
    assert low < 0


def test_a_clustered_rate_is_a_rate_of_fewer() -> None:
    hits, groups = [True] * 90 + [False] * 10, [i // 10 for i in range(100)]
    clustered, alone = clustered_rate(hits, groups), rate(hits)
    assert clustered.value == alone.value
    assert width(clustered) > 2 * width(alone)  # the failures are all of one answer
    assert clustered.high is not None
    assert clustered.high <= 1
    whole = clustered_rate([True] * 100, groups)
    assert whole.low == pytest.approx(wilson(10, 10)[0], abs=0.07)  # as ten answers, not as a hundred tokens
    assert whole.low is not None
    assert whole.low < wilson(10, 10)[0]


def test_clustered_percentile() -> None:
    draw = random.Random(3)
    groups = [i // 20 for i in range(2000)]
    values = [draw.expovariate(1) for _ in groups]
    found = clustered_percentile(values, groups, 0.99)
    assert found == clustered_percentile(values, groups, 0.99)
    assert found.value == percentile(values, 0.99)
    assert found.interval is not None
    assert found.interval[0] < -math.log(0.01) < found.interval[1]
    assert found.counted == "2000 tokens of 100 answers"


def test_the_interval_of_paired_rates_is_newcombes() -> None:
    """Newcombe 1998, 36 right by both, 12 and 2 by one, none by neither: method 10."""
    first, second = [True] * 48 + [False] * 2, [True] * 36 + [False] * 12 + [True] * 2
    assert paired_rates(second, first) == pytest.approx((0.0569, 0.3404), abs=6e-5)


@pytest.mark.parametrize("n", [3, 5, 6, 10, 40])
def test_signs_find_nothing_where_nothing_is(n: int) -> None:
    """The percentile bootstrap rejects 28 % of samples of three."""
    draw = random.Random(n)
    rounds = 400
    found = sum(sign_flip([draw.gauss(0, 1) for _ in range(n)]) < 0.05 for _ in range(rounds))
    assert found <= (0 if n < 6 else 0.085 * rounds)


def test_signs_exactly_and_from_random_ones() -> None:
    assert sign_flip([1.0] * 5) == 1 / 16
    assert sign_flip([1.0] * 6 + [0.0] * 100) == 1 / 32
    assert sign_flip([0.1, 0.2, -0.3]) == 1  # all sums are as far from 0 as this one, but for rounding
    assert sign_flip([]) == sign_flip([0.0]) == 1
    draw = random.Random(5)
    differences = [draw.gauss(0.3, 1) for _ in range(15)]
    exact, drawn = sign_flip(differences), sign_flip([*differences, 1e-15])
    assert exact == pytest.approx(drawn, abs=0.015)
    assert sign_flip([1.0] * 200) == pytest.approx(1 / 20_001)


def test_mcnemar_of_many() -> None:
    """More questions than a float has powers of two."""
    first, second = [True] * 3000, [True] * 600 + [False] * 2400
    assert mcnemar(first, second) < 1e-300
    assert mcnemar([True] * 1200 + [False] * 1200, [False] * 1200 + [True] * 1200) == 1


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1, 1]
    assert holm([]) == []


def test_percentile() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5.0], 0.99) == 5
    assert math.isnan(percentile([], 0.5))
