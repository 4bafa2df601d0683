"""Turns a ModelReport into the JSON that docs/json.md describes. A metric becomes the text SUITE.NAME."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from builder.console.words import listed, quoted
from builder.errors import BuildError
from builder.report.answer import answer
from builder.report.facts import ModelReport
from builder.spec.types import Metric


class FiguresOfOneName(BuildError):
    """model "{model}": "{text}" can mean {ways}."""

    exit_code = 3
    hint = "Rename one of the suites in artifacts.toml: in JSON both figures would have this name."


def document(model: ModelReport) -> dict[str, Any]:
    """The report of a model as values for `json.dumps`. Raises FiguresOfOneName if two keys are equal."""
    _check_names(model)
    compared = []
    for each in model.compared:
        suite, name = each.metric
        compared.append({"suite": suite, "kind": each.kind, **asdict(each), "metric": name})
    said = answer(model)
    added = {"headline": said.headline, "chosen": said.chosen, "compared": compared}
    made: dict[str, Any] = as_json({**asdict(model), **added})
    return made


def as_json(value: Any) -> Any:
    """The value with metrics as text, and with None for NaN and infinity, which JSON cannot express."""
    if isinstance(value, Metric):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {as_json(key): as_json(each) for key, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


def _check_names(model: ModelReport) -> None:
    rows = [*model.rows, *([model.plain] if model.plain else [])]
    found = dict.fromkeys([*model.metrics, *model.required])
    found |= dict.fromkeys(metric for row in rows for metric in (*row.figures, *(row.control or {})))
    named: dict[str, list[str]] = {}
    for metric in found:
        way = f"figure {quoted(metric.name)} of suite {quoted(metric.suite)}"
        named.setdefault(str(metric), []).append(way)
    for text, ways in named.items():
        if len(ways) > 1:
            raise FiguresOfOneName(model=model.name, text=text, ways=listed(ways, "or"))
