"""Writes docs/study and docs/frontier again from the report.json in each of them. Measures nothing.

doit -d example/study report --json > docs/study/report.json           # after a new study
doit -d example/frontier report --json > docs/frontier/report.json     # after new measurements of many sizes
python docs/study_page.py [FOLDER]                                     # pages, Markdown and plots, below docs
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.commands.report import write
from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import Difference
from builder.evaluate.line import Ratio
from builder.evaluate.results import Sample
from builder.evaluate.statistics import Figure
from builder.report.facts import (
    Beside,
    BlockSurvival,
    Compared,
    Frontier,
    ModelReport,
    Production,
    Provenance,
    Report,
    Row,
)
from builder.spec.types import Metric
from builder.weights.survival import Survival

DOCS = Path(__file__).resolve().parent
NAMES = ("study", "frontier")
_OF_THE_ANSWER = ("headline", "chosen")  # the page finds the answer itself


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    for name in NAMES:
        text = (DOCS / name / "report.json").read_text(encoding="utf-8")
        for path in write(report_of(text), folder / name):
            print(path)
    return 0


def report_of(text: str) -> Report:
    """The report that a document of `doit report --json` describes."""
    data = json.loads(text)
    return Report(data["version"], tuple(map(_model, data["models"])))


def _model(data: dict[str, Any]) -> ModelReport:
    kinds = data["kinds"]
    known = {name: value for name, value in data.items() if name not in _OF_THE_ANSWER}
    made = {
        "rows": tuple(_row(row, kinds) for row in data["rows"]),
        "metrics": tuple(_metric(text, kinds) for text in data["metrics"]),
        "required": {_metric(text, kinds): tuple(limit) for text, limit in data["required"].items()},
        "compared": tuple(map(_compared, data["compared"])),
        "absent": tuple(data["absent"]),
        "plain": _row(data["plain"], kinds) if data["plain"] else None,
        "production": Production(**data["production"]) if data["production"] else None,
        "frontier": _frontier(data["frontier"], kinds) if data["frontier"] else None,
    }
    return ModelReport(**{**known, **made})


def _frontier(data: Mapping[str, Any], kinds: Mapping[str, str]) -> Frontier:
    beside = tuple(Beside(each["target"], Ratio(**each["ratio"])) for each in data["beside"])
    return Frontier(_metric(data["metric"], kinds), tuple(data["line"]), beside)


def _row(data: dict[str, Any], kinds: Mapping[str, str]) -> Row:
    measured = data["provenance"]["measured"]
    told = Told(**measured) if measured else None
    made = {
        "figures": _figures(data["figures"], kinds),
        "survival": Survival(**data["survival"]) if data["survival"] else None,
        "blocks": tuple(
            BlockSurvival(each["block"], Survival(**each["survival"])) for each in data["blocks"]
        ),
        "misses": tuple(data["misses"]),
        "doubts": {_metric(text, kinds): end for text, end in data["doubts"].items()},
        "provenance": Provenance(**{**data["provenance"], "measured": told}),
        "control": None if data["control"] is None else _figures(data["control"], kinds),
        "samples": {
            suite: tuple(Sample(**sample) for sample in kept) for suite, kept in data["samples"].items()
        },
    }
    return Row(**{**data, **made})


def _figures(data: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[Metric, Figure]:
    return {_metric(text, kinds): Figure(**figure) for text, figure in data.items()}


def _compared(data: Mapping[str, Any]) -> Compared:
    """A comparison. A difference that no test shows has no value in an older report."""
    numbers = {name: math.nan if value is None else value for name, value in data["difference"].items()}
    metric = Metric(data["suite"], data["metric"])
    return Compared(metric, data["kind"], data["first"], data["second"], Difference(**numbers))


def _metric(text: str, kinds: Mapping[str, str]) -> Metric:
    """The metric that "suite.name" means. Suites may have dots in their names."""
    suite = max((suite for suite in kinds if text.startswith(f"{suite}.")), key=len)
    return Metric(suite, text[len(suite) + 1 :])


if __name__ == "__main__":
    sys.exit(main())
