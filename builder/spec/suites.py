"""Parses [suite.NAME] and [model.NAME.require], after `builder.spec.shape` has checked their types."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.console.words import listed, quoted, shown, suggestion
from builder.spec.fields import SUITE
from builder.spec.problems import Problems
from builder.spec.shape import Values
from builder.spec.types import METRICS, Condition, Metric, Suite, SuiteKind, Variant

# kind -> the keys that a suite needs, and the keys that it may have, besides `kind`
KEYS: Mapping[SuiteKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "choice": (("data", "candidates"), ("answer", "where", "batch")),
    "exact": (("data",), ("where", "batch")),
    "generate": (("data",), ("where", "check", "max_tokens")),
    "perplexity": (("data",), ("where", "batch", "window")),
    "fidelity": (("data",), ("where", "batch", "window", "top_k")),
    "command": (("command",), ("data", "timeout")),
}
_OPERATORS = (">=", "<=", ">", "<")
_LEAST = {"max_tokens": 1, "top_k": 1, "batch": 1, "window": 2, "timeout": 1}


def suite(name: str, values: Values, folder: Path, problems: Problems) -> Suite:
    """One suite. After a problem the value does not matter, because the parse fails."""
    kind: SuiteKind = values.given.get("kind", "command")
    if "kind" in values.given:
        _check_keys(kind, values, problems)
    for key, least in _LEAST.items():
        if key in values.given and values.given[key] < least:
            problems.add(
                values.place.key(key), f"{key} = {values.given[key]} is too small; it must be {least} or more"
            )
    if "command" in values.given and (what := _no_command(values.given["command"])):
        problems.add(values.place.key("command"), f"command = {shown(values.given['command'])} {what}")
    candidates = values.given.get("candidates", {})
    if len(candidates) == 1:
        problems.add(values.place.key("candidates"), "a choice needs two candidates or more; add one")
    rest = {
        key: value
        for key, value in values.given.items()
        if key in {field.name for field in SUITE.fields} - {"kind", "data"}
    }
    data = folder / Path(values.given["data"]).expanduser() if "data" in values.given else None
    return Suite(name, kind, data, **rest)


def _no_command(command: str) -> str | None:
    """What is wrong with a command as shell words, or None."""
    try:
        return None if shlex.split(command) else "has no words; name a program"
    except ValueError as error:
        return f"cannot be split into words: {str(error).lower()}"


def _check_keys(kind: SuiteKind, values: Values, problems: Problems) -> None:
    needed, possible = KEYS[kind]
    examples = {field.name: field.example for field in SUITE.fields}
    for key in needed:
        if not values.says(key):
            example = examples[key]
            if key == "candidates":
                example = f"candidates = {{ {example} }}"
            problems.add(values.place, f"{key} is missing; add, for example, {example}")
    for key in values.given:
        if key not in ("kind", *needed, *possible):
            fitting = [other for other, (must, may) in KEYS.items() if key in (*must, *may)]
            what = f"{key} is not for kind {quoted(kind)} but for {listed(fitting, 'and')}; remove it"
            problems.add(values.place.key(key), what)


def check_searched(
    name: str,
    model: Values,
    variants: Mapping[str, Variant],
    suites: Mapping[str, Suite],
    require: Sequence[Condition],
    problems: Problems,
) -> None:
    """Checks that a model requires something that a variant which searches its size can be judged by."""
    for index, listed_name in enumerate(model.given.get("variants", ())):
        variant = variants.get(listed_name) if listed_name is not None else None
        if variant is None or variant.goal is None or not variant.goal.smallest:
            continue
        place, who = model.place.key("variants", index), f"variant {quoted(variant.name)} searches its size"
        if not model.says("require"):
            problems.add(place, f"{who}, but this model requires nothing; add [model.{name}.require]")
        for each in require:
            if suites[each.suite].kind == "command":
                what = f"{who}, but {quoted(str(each.metric))} comes from a command, which asks everything"
                problems.add(place, f"{what}; give the variant a size, or require it of another model")


def conditions(values: Values, suites: Mapping[str, Suite], problems: Problems) -> tuple[Condition, ...]:
    """The conditions of one model, in file order."""
    made = (_condition(key, text, values, suites, problems) for key, text in _required(values).items())
    return tuple(condition for condition in made if condition is not None)


def _required(values: Values) -> Mapping[str, str]:
    required: Mapping[str, str] = values.given.get("require", {}) if values.says("suites") else {}
    return required


def _condition(
    key: str, text: str, values: Values, suites: Mapping[str, Suite], problems: Problems
) -> Condition | None:
    place = values.place.key("require", key)
    measured = [each for each in values.given.get("suites", ()) if each is not None]
    metric = metric_of(key, measured, suites)
    if not isinstance(metric, Metric):
        problems.add(place, metric)
        return None
    operator = next((each for each in _OPERATORS if text.startswith(each)), None)
    try:
        value = float(text[len(operator or "") :])
    except ValueError:
        value = float("nan")
    if operator is None or value != value:
        what = f"{quoted(key)} = {shown(text)} is not a condition"
        problems.add(place, f'{what}; write, for example, "{key}" = ">= 0.95"')
        return None
    return Condition(metric, operator, value)


def metric_of(key: str, measured: Sequence[str], suites: Mapping[str, Suite]) -> Metric | str:
    """The metric that a key names, or what is wrong with the key.

    Names may hold dots, so a key such as "a.b.c" can be read in two ways. The declared suites and the figures
    of their kinds decide. The figures of a command are not known before the command has run. So a reading as
    a figure of a command counts only where no other suite has the figure.
    """
    readings = [
        Metric(name, key[len(name) + 1 :])
        for name in sorted(set(measured), key=len, reverse=True)
        if key.startswith(f"{name}.") and len(key) > len(name) + 1
    ]
    if not readings:
        what = f"{quoted(key)}: this model has no suite with a figure of that name"
        return f"{what}; write SUITE.FIGURE (suites: {listed(measured)})"
    figures = {name: METRICS[suites[name].kind] if name in suites else {} for name, _ in readings}
    declared = [each for each in readings if each.name in figures[each.suite]]
    possible = declared or [each for each in readings if not figures[each.suite]]
    if not possible:
        suite, name = readings[0]
        return f"suite {quoted(suite)} has no figure {quoted(name)}" + suggestion(name, list(figures[suite]))
    if len(possible) > 1:
        ways = [f"figure {quoted(each.name)} of suite {quoted(each.suite)}" for each in possible]
        return f"{quoted(key)} can mean {listed(ways, 'or')}; rename one of the suites"
    return possible[0]
