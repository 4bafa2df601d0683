"""The result of a suite for a target: its type, its file in the store under evals/, and its conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from builder.console.words import number
from builder.evaluate.statistics import Figure
from builder.keys import Key
from builder.spec.types import METRICS, Condition, Metric, Suite, SuiteKind
from builder.store import seals
from builder.store.layout import Store

FORMAT = 2
MOST_SAMPLES = 5  # answers of a suite that are kept
_LONGEST = 400  # characters of a kept text


@dataclass(frozen=True)
class Sample:
    """One answer that a target wrote: the question, the right answer, what was `said`, if that is right.

    Long texts are shortened. With the check "regex" the right answer is a regular expression.
    """

    question: str
    expected: str
    said: str
    right: bool


def shortened(text: str) -> str:
    """A text of at most 400 characters."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


@dataclass(frozen=True)
class Result:
    """What one suite measured for one target. `figures` are by name.

    `rows` has, by the name of a figure, one outcome for each question. Paired tests use them. `made` says
    how, when and on which machine the suite measured. `samples` are the first answers of a suite that
    generates. Results that were written before samples existed have none. `asked`: where only a part of the
    suite's questions was asked, which of all `rows` these are.
    """

    key: Key
    target: str
    suite: str
    kind: str
    figures: Mapping[str, Figure]
    rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    asked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Doubt:
    """A condition that a target meets, but not with certainty: `end` of the interval does not meet it."""

    condition: Condition
    end: float

    def __str__(self) -> str:
        return f"{self.condition}: the true value may be as {side(self.condition.operator)} as {self.end:.4g}"


@dataclass(frozen=True)
class Missed:
    """A condition that a target does not meet. `value` is the measured figure, or None without a result."""

    condition: Condition
    value: float | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.condition}: not measured"
        short = abs(self.condition.value - self.value)
        return f"{self.condition}: measured {self.value:.4g}, misses by {short:.4g}"


def result_of(
    key: Key, target: str, suite: Suite, said: Mapping[str, Any], made: Mapping[str, str]
) -> Result:
    """The result that the worker said for a suite, as JSON values."""
    return Result(
        key,
        target,
        suite.name,
        suite.kind,
        {name: Figure(**figure) for name, figure in said["figures"].items()},
        {metric: tuple(values) for metric, values in said.get("rows", {}).items()},
        made,
        tuple(Sample(**sample) for sample in said.get("samples", ())),
        tuple(said.get("asked", ())),
    )


def path(store: Store, key: Key) -> Path:
    """The file that holds the result of a key."""
    return store.evals / key[:2] / f"{key}.json"


def read(store: Store, key: Key) -> Result | None:
    """The result of a key. None when there is none, or when its file is damaged."""
    text = seals.read(path(store, key))
    if text is None:
        return None
    try:
        data = json.loads(text)
        if data.pop("format") != FORMAT or data["key"] != key:
            return None
        figures = {name: Figure(**figure) for name, figure in data.pop("figures").items()}
        rows = {name: tuple(values) for name, values in data.pop("rows").items()}
        samples = tuple(Sample(**sample) for sample in data.pop("samples", ()))
        asked = tuple(data.pop("asked", ()))
        return Result(figures=figures, rows=rows, samples=samples, asked=asked, **data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def write(store: Store, result: Result) -> None:
    """Keeps a result in the store. Raises StoreError."""
    data = {"format": FORMAT, **asdict(result)}
    if not result.samples:  # so that a version which knows no samples reads the results of other suites
        del data["samples"]
    if not result.asked:
        del data["asked"]
    text = json.dumps(data, sort_keys=True)
    seals.write(store, path(store, result.key), text + "\n")


def figures(result: Result) -> list[tuple[str, Figure]]:
    """The figures of a result in the order in which its kind lists them, whether measured now or read."""
    order = [*METRICS.get(cast(SuiteKind, result.kind), ())]
    return sorted(result.figures.items(), key=lambda each: order.index(each[0]) if each[0] in order else 99)


def figure_of(results: Mapping[str, Result], metric: Metric) -> Figure | None:
    """The figure of a metric, from results by suite. None if it was not measured."""
    result = results.get(metric.suite)
    return result.figures.get(metric.name) if result else None


def missed(conditions: tuple[Condition, ...], results: Mapping[str, Result]) -> list[Missed]:
    """The conditions that do not hold, in order of declaration. `results` are by suite."""
    found = []
    for condition in conditions:
        figure = figure_of(results, condition.metric)
        value = figure.value if figure else None
        if value is None or not _holds(condition, value):
            found.append(Missed(condition, value))
    return found


def doubts(conditions: tuple[Condition, ...], results: Mapping[str, Result]) -> list[Doubt]:
    """The conditions that hold for the figure but not for its whole interval, in order of declaration."""
    found = []
    for condition in conditions:
        figure = figure_of(results, condition.metric)
        if figure is None or figure.interval is None or not _holds(condition, figure.value):
            continue
        low, high = figure.interval
        end = low if side(condition.operator) == "low" else high
        if not _holds(condition, end):
            found.append(Doubt(condition, end))
    return found


Verdict = Literal["passes", "misses", "not measured", "nothing required"]


def verdict(conditions: tuple[Condition, ...], results: Mapping[str, Result]) -> Verdict:
    """The one word for what is known of a target's requirements: in status, eval, threshold and report."""
    if not conditions:
        return "nothing required"
    short = missed(conditions, results)
    if any(miss.value is None for miss in short):
        return "not measured"
    return "misses" if short else "passes"


def passing(target: str, conditions: tuple[Condition, ...], results: Mapping[str, Result]) -> str:
    """A sentence about a target that misses nothing that is required of it."""
    if not conditions:
        return f"{target}: nothing is required of it"
    if unsure := doubts(conditions, results):
        return f"{target} passes, but not with certainty: {'; '.join(map(str, unsure))}"
    return f"{target} passes: {', '.join(map(str, conditions))}"


def _holds(condition: Condition, value: float) -> bool:
    match condition.operator:
        case ">=":
            return value >= condition.value
        case "<=":
            return value <= condition.value
        case ">":
            return value > condition.value
    return value < condition.value


def side(operator: str) -> Literal["low", "high"]:
    """The side on which values miss a condition with this operator."""
    return "high" if operator.startswith("<") else "low"


def interval_text(figure: Figure) -> str:
    """The 95 % interval of a figure, such as "0.941 to 0.995". Empty if the figure has no interval."""
    if figure.interval is None:
        return ""
    low, high = figure.interval
    return f"{number(low)} to {number(high)}"
