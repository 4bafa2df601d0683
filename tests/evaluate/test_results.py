"""What is required of results, and how far the intervals leave it open."""

from __future__ import annotations

import pytest

from builder.evaluate.results import Doubt, Missed, Result, doubts, figure_of, missed
from builder.evaluate.statistics import Figure
from builder.keys import make_key
from builder.spec.types import Condition, Metric


def known(suite: str, kind: str, **figures: Figure) -> dict[str, Result]:
    named = {name.replace("__", "."): figure for name, figure in figures.items()}
    return {suite: Result(make_key("eval/1", "x"), "t", suite, kind, named)}


def test_a_figure_is_found_by_both_names() -> None:
    one, other = Figure(1.0, None, None, 1), Figure(2.0, None, None, 1)
    results = known("a", "command", b__c=one) | known("a.b", "command", c=other)
    assert figure_of(results, Metric("a", "b.c")) == one
    assert figure_of(results, Metric("a.b", "c")) == other
    assert figure_of(results, Metric("a", "c")) is None
    assert figure_of(results, Metric("b", "c")) is None
    least = [Condition(Metric("a", "b.c"), ">=", 1.5), Condition(Metric("a.b", "c"), ">=", 1.5)]
    assert missed(tuple(least), results) == [Missed(least[0], 1.0)]
    assert str(missed(tuple(least), results)[0]) == "a.b.c >= 1.5: measured 1, misses by 0.5"


@pytest.mark.parametrize(
    ("operator", "said"),
    [(">=", "low as 0.8"), (">", "low as 0.8"), ("<=", "high as 0.95"), ("<", "high as 0.95")],
)
def test_a_doubt_says_how_low_or_high_the_true_value_may_be(operator: str, said: str) -> None:
    results = known("routing.v2", "choice", greedy=Figure(0.9, 0.8, 0.95, 120))
    condition = Condition(
        Metric("routing.v2", "greedy"), operator, 0.85 if operator.startswith(">") else 0.92
    )
    (doubt,) = doubts((condition,), results)
    assert doubt == Doubt(condition, 0.8 if operator.startswith(">") else 0.95)
    assert str(doubt) == f"{condition}: the true value may be as {said}"


def test_a_whole_interval_that_meets_a_condition_leaves_no_doubt() -> None:
    results = known("s", "choice", greedy=Figure(0.9, 0.8, 0.95, 120))
    assert doubts((Condition(Metric("s", "greedy"), ">=", 0.8),), results) == []
    assert doubts((Condition(Metric("s", "greedy"), ">=", 0.99),), results) == []  # it is missed
