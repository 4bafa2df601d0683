"""Compares pairs of targets on the questions of their suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from builder.evaluate.comparison import PAIRED, Difference, compare, together
from builder.evaluate.results import Result
from builder.report.facts import Compared
from builder.spec.types import Metric, Model


def compared(
    model: Model,
    kinds: Mapping[str, str],
    order: Sequence[str],
    results: Mapping[str, Mapping[str, Result]],
) -> list[Compared]:
    """Compares neighbours in size, and each target with the largest target.

    The compared figures are the figures that the model requires of a suite, else the suite's main figure. All
    tests are judged together.
    """
    pairs = dict.fromkeys([*pairwise(order), *((order[0], other) for other in order[1:])])
    asked: list[tuple[Metric, str, str]] = []
    found: list[Difference] = []
    for suite, kind in kinds.items():
        for metric in _tested(model, suite, kind):
            for first, second in pairs:
                one, other = _both(results[first].get(suite), results[second].get(suite), metric)
                if one:
                    asked.append((metric, first, second))
                    found.append(compare(kind, metric.name, one, other))
    judged = zip(asked, together(found), strict=True)
    return [
        Compared(metric, kinds[metric.suite], first, second, difference)
        for (metric, first, second), difference in judged
    ]


def _tested(model: Model, suite: str, kind: str) -> list[Metric]:
    """The metrics of a suite that are compared: the required metrics with a value for each question.

    If there are none, the main metric of the suite.
    """
    paired = PAIRED.get(kind, ())
    required = dict.fromkeys(each.metric for each in model.require if each.suite == suite)
    return [metric for metric in required if metric.name in paired] or [
        Metric(suite, name) for name in paired[:1]
    ]


def _both(first: Result | None, second: Result | None, metric: Metric) -> tuple[list[float], list[float]]:
    """The outcomes of two results on the questions that both were asked."""
    one, other = _rows(first, metric), _rows(second, metric)
    common = sorted(one.keys() & other.keys())
    return [one[number] for number in common], [other[number] for number in common]


def _rows(result: Result | None, metric: Metric) -> Mapping[int, float]:
    """The number of each question, with its outcome."""
    values = result.rows.get(metric.name, ()) if result else ()
    numbers = result.asked if result and result.asked else range(len(values))
    return dict(zip(numbers, values, strict=False))
