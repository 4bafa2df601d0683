"""Against published values and closed forms."""

from __future__ import annotations

import math

import pytest

from builder.evaluate.statistics import bootstrap, mcnemar, mean, percentile, rate, standard_error, wilson


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
    assert figure.low < 118 / 120 < figure.high


def test_mcnemar_counts_only_what_differs() -> None:
    same = [True] * 90
    assert mcnemar([*same, True, True], [*same, True, True]) == 1
    assert mcnemar([True] * 6, [False] * 6) == pytest.approx(2 / 64)
    assert mcnemar([True] * 3 + [False] * 3, [False] * 3 + [True] * 3) == 1


def test_tokens_of_one_row_are_one_observation() -> None:
    values, groups = [1.0, 1.0, 3.0, 3.0], [0, 0, 1, 1]
    assert standard_error(values, groups) == pytest.approx(standard_error([1.0, 3.0]))
    assert mean(values).half < mean(values, groups).half
    assert math.isinf(standard_error([1.0]))


def test_bootstrap_is_repeatable_and_covers() -> None:
    differences = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap(differences)
    assert (low, high) == bootstrap(differences)
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62


def test_percentile() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5.0], 0.99) == 5
    assert math.isnan(percentile([], 0.5))
