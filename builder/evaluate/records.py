"""What was measured as plain records: for JSON, and for a DataFrame in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from builder.evaluate.results import Result, doubts, figures, missed, verdict
from builder.evaluate.statistics import Figure
from builder.spec.types import Metric, Target

Record = dict[str, Any]


def records_of(target: Target, results: Mapping[str, Result]) -> list[Record]:
    """One record for each figure of a target. `required` and `holds` are None where nothing is required."""
    required: dict[Metric, list[Any]] = {}
    for condition in target.model.require:
        required.setdefault(condition.metric, []).append(condition)
    short = {miss.condition for miss in missed(target.model.require, results)}
    found = []
    for suite, result in results.items():
        for name, figure in figures(result):
            asked = required.get(Metric(suite, name), [])
            found.append(
                {
                    "target": target.name,
                    "model": target.model.name,
                    "variant": target.variant.name,
                    "suite": suite,
                    "figure": name,
                    "value": figure.value,
                    "low": _end(figure, 0),
                    "high": _end(figure, 1),
                    "n": figure.n,
                    "required": ", ".join(f"{c.operator} {c.value:g}" for c in asked) or None,
                    "holds": not short & set(asked) if asked else None,
                }
            )
    return found


def _end(figure: Figure, side: int) -> float | None:
    """One end of the interval; None where there is none, or where it is open."""
    end = figure.interval[side] if figure.interval else None
    return end if end is not None and math.isfinite(end) else None


def evaluation(target: Target, results: Mapping[str, Result]) -> Record:
    """What was measured of a target, with the verdict, as one document."""
    require = target.model.require
    return {
        "target": target.name,
        "verdict": verdict(require, results),
        "misses": [str(miss) for miss in missed(require, results)],
        "doubts": [str(doubt) for doubt in doubts(require, results)],
        "figures": records_of(target, results),
    }
