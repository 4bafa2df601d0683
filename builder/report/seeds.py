"""One table over the seeds of a model: what holds for the recipe, and not for one run of it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from builder.console.words import count, size_text
from builder.report.cells import accuracy, divergence, heading, number_text
from builder.report.facts import ModelReport, Row, SeedsReport, SeedsRow, Spread
from builder.report.tables import Table
from builder.spec.seeds import models_of
from builder.spec.types import Metric

RANGE = "A figure is the mean over the seeds, with the smallest and the largest value of one seed."


@dataclass(frozen=True)
class SeedsSection:
    """What the report says about all seeds of a model."""

    name: str
    headline: str
    chosen: str | None
    table: Table


def of_seeds(models: Iterable[ModelReport]) -> tuple[SeedsReport, ...]:
    """The models with several seeds that are shown with more than one of them."""
    return tuple(_report(name, family) for name, family in models_of(models).items() if len(family) > 1)


def sections(models: Sequence[ModelReport]) -> list[SeedsSection]:
    """A headline and a table for each model with several seeds of which something is built."""
    found = []
    for name, family in models_of(models).items():
        if len(family) > 1 and (each := _report(name, family)).rows:
            table = _table(each, family)
            found.append(SeedsSection(name, _headline(each, family[0]), each.chosen, table))
    return found


def _report(name: str, family: Sequence[ModelReport]) -> SeedsReport:
    variants = dict.fromkeys(row.variant for model in family for row in model.rows)
    rows = [_row([row for model in family for row in model.rows if row.variant == each]) for each in variants]
    rows.sort(key=lambda row: -row.size)
    whole = [row for row in rows if row.passed == len(family)] if family[0].required else []
    chosen = whole[-1].variant if whole else None
    return SeedsReport(name, tuple(model.name for model in family), tuple(rows), chosen)


def _row(rows: Sequence[Row]) -> SeedsRow:
    """One variant, from its row of each seed that has one."""
    shared = [metric for metric in rows[0].figures if all(metric in row.figures for row in rows)]
    values = {metric: [row.figures[metric].value for row in rows] for metric in shared}
    return SeedsRow(
        variant=rows[0].variant,
        size=max(row.size for row in rows),
        passed=sum(row.verdict == "passes" for row in rows),
        measured=sum(row.verdict != "not measured" for row in rows),
        spreads={m: Spread(statistics.fmean(each), min(each), max(each)) for m, each in values.items()},
    )


def _headline(report: SeedsReport, model: ModelReport) -> str:
    seeds = count(len(report.models), "seed")
    if not model.required:
        return f"Nothing is required: {seeds}"
    if report.chosen is None:
        return f"No variant is known to pass with all {seeds}"
    size = next(row.size for row in report.rows if row.variant == report.chosen)
    return f"{report.chosen} is the smallest that passes with all {seeds}: {size_text(size)}"


def _table(report: SeedsReport, family: Sequence[ModelReport]) -> Table:
    model = max(family, key=lambda each: len(each.metrics))
    asked = [metric for metric in model.required if metric in model.metrics][:3]
    shown = asked or [metric for metric in (accuracy(model), divergence(model)) if metric]
    rows = [
        (
            row.variant,
            f"{row.passed} of {row.measured}" if model.required and row.measured else "-",
            size_text(row.size),
            *(_spread(model, metric, row.spreads.get(metric)) for metric in shown),
        )
        for row in report.rows
    ]
    headings = ("variant", "passes", "size", *(heading(model, metric) for metric in shown))
    return Table(f"All {count(len(family), 'seed')}", headings, tuple(rows))


def _spread(model: ModelReport, metric: Metric, found: Spread | None) -> str:
    if found is None:
        return "-"
    least, most = (
        number_text(model, metric, value).removesuffix(" %") for value in (found.least, found.most)
    )
    return f"{number_text(model, metric, found.mean)} ({least} to {most})"
