"""Turns a Report into tables of plain text, for the page, the Markdown and the terminal.

No cell says more than its numbers. A rate comes with its interval. Two targets are called different only
where a paired test says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.console.words import size_text
from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import RATES
from builder.evaluate.results import side
from builder.report.cells import (
    AGREEMENT,
    KL,
    PERPLEXITY,
    accuracy,
    cell,
    decibels,
    divergence,
    error_text,
    heading,
    is_distance,
    memory,
    number_text,
    of_kind,
    shown_as,
)
from builder.report.facts import Compared, ModelReport, Row
from builder.spec.types import Metric


@dataclass(frozen=True)
class Table:
    """A table of text. `text` holds the indices of the columns with words. Other columns hold figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


def study(model: ModelReport, *, few: bool = False, brief: bool = False) -> Table:
    """What each target costs and can do: one row for each target, and one row for the base alone.

    `few` leaves out columns that repeat what another column says. `brief` leaves out intervals.
    """
    metrics = [metric for metric in model.metrics if shown_as(model, metric) != "GB"]
    metrics = [metric for metric in metrics if not few or not _second(model, metric)]
    headings = ["variant", "result", "levels", "disk", "memory", "bits/weight"]
    headings += [heading(model, metric) for metric in metrics] + ["survival"]
    headings += [] if few else ["quantization error"]
    rows = []
    for row in ((model.plain,) if model.plain else ()) + model.rows:
        alone = row is model.plain
        cells = [
            f"{row.variant}, no adapter" if alone else row.variant,
            "-" if alone else _result(model, row, brief=brief),
            row.levels,
            size_text(row.size),
            memory(model, row),
            f"{row.bits_per_weight:.2f}",
        ]
        for metric in metrics:
            figure = None if alone and is_distance(model, metric) else row.figures.get(metric)
            cells.append(cell(model, metric, figure, brief=brief))
        cells += [decibels(row)] if few else [decibels(row), error_text(row)]
        rows.append(cells)
    return Table("What each variant costs and can do", *_trim(headings, rows), frozenset({0, 1}))


def answer(model: ModelReport) -> Table:
    """The study in six columns for a README, without intervals. `doubted` says what these leave open."""
    rate, distance = accuracy(model), divergence(model)
    headings = ["variant", "size", "bits per weight", "accuracy", "KL", "verdict"]
    rows = []
    for row in ((model.plain,) if model.plain else ()) + model.rows:
        alone = row is model.plain
        cells = [
            f"{row.variant}, no adapter" if alone else row.variant,
            size_text(row.size),
            f"{row.bits_per_weight:.2f}",
            cell(model, rate, row.figures.get(rate), brief=True) if rate else "-",
            cell(model, distance, row.figures.get(distance), brief=True) if distance and not alone else "-",
            "-" if alone else _short_verdict(row),
        ]
        rows.append(cells)
    trimmed, body = _trim(headings, rows)
    return Table("The answer", trimmed, body, frozenset({0, len(trimmed) - 1}))


def _short_verdict(row: Row) -> str:
    return f"{row.verdict}, not certain" if row.verdict == "passes" and row.doubts else row.verdict


def doubted(model: ModelReport) -> list[str]:
    """Sentences about the targets that pass although their true figures may not."""
    said: dict[str, list[str]] = {}
    rate = accuracy(model)
    for row in model.rows:
        if row.verdict == "passes" and row.doubts:
            said.setdefault(_ends(model, row, {rate: "accuracy"} if rate else {}), []).append(row.variant)
    return [f"Not certain for {', '.join(variants)}: {ends}." for ends, variants in said.items()]


def _second(model: ModelReport, metric: Metric) -> bool:
    """Whether another figure of the suite says nearly what this metric says."""
    if metric in model.required:
        return False
    match of_kind(model, metric):
        case "choice", "accuracy":
            return metric._replace(name="greedy") in model.required
        case "choice", "greedy":
            return metric._replace(name="accuracy") in model.required
        case ("fidelity", "kl_p99") | ("generate", "tokens_per_second"):
            return True
    return False


def _result(model: ModelReport, row: Row, *, brief: bool) -> str:
    """The verdict, and the intervals that leave it open."""
    if brief or row.verdict != "passes" or not row.doubts:
        return row.verdict
    return f"{row.verdict} ({_ends(model, row)})"


def _ends(model: ModelReport, row: Row, names: Mapping[Metric, str] = {}) -> str:
    """How low or high the figures may be in truth. `names` replaces the headings of metrics."""
    ends = []
    for metric, end in row.doubts.items():
        name = names.get(metric) or heading(model, metric)
        where = side(model.required[metric][0])
        ends.append(f"the true {name} may be as {where} as {number_text(model, metric, end)}")
    return " and ".join(ends)


def whose_loss(model: ModelReport) -> Table | None:
    """Each variant beside the base without adapter in the same quantization. None without a control."""
    rows = [row for row in model.rows if row.control]
    metrics = [m for m in model.metrics if of_kind(model, m) in (KL, AGREEMENT, PERPLEXITY)]
    metrics = [m for m in metrics if any(m in (row.control or {}) for row in rows)]
    if not rows or not metrics:
        return None
    headings = ["variant"]
    for metric in metrics:
        headings += [f"{heading(model, metric)}, fine-tuned", f"{heading(model, metric)}, base alone"]
    headings += ["survival", "cosine", "quantization error"]
    body = []
    for row in rows:
        cells = [row.variant]
        for metric in metrics:
            cells += [
                cell(model, metric, row.figures.get(metric)),
                cell(model, metric, (row.control or {}).get(metric)),
            ]
        sums = row.survival
        cosine = f"{sums.cosine:.3f}" if sums and sums.cosine is not None else "-"
        body.append((*cells, decibels(row), cosine, error_text(row)))
    return Table("Whose loss is it?", *_trim(headings, body))


def comparisons(model: ModelReport) -> Table | None:
    """What paired tests say about pairs of targets. None when nothing can be compared."""
    if not model.compared:
        return None
    prefix = f"{model.name}_"
    rows = tuple(
        (
            str(compared.metric),
            compared.first.removeprefix(prefix),
            compared.second.removeprefix(prefix),
            verdict(compared),
            f"{compared.difference.p:.2g}",
            f"{compared.difference.adjusted:.2g}",
        )
        for compared in model.compared
    )
    return Table(
        "Differences that paired tests show",
        ("figure", "from", "to", "difference", "p", "p, Holm"),
        rows,
        frozenset({0, 1, 2, 3}),
    )


def provenance(model: ModelReport) -> Table:
    """Where each target came from. Digests are shortened to 12 digits. Manifests hold them whole."""
    rows = tuple(
        (
            row.variant,
            row.provenance.key[:12],
            _named(row.provenance.base, row.provenance.base_digest),
            _named(row.provenance.adapter, row.provenance.adapter_digest),
            row.provenance.settings,
            row.provenance.toolchain,
            row.provenance.machine,
            row.provenance.created or "not built",
            *_measured(row.provenance.measured),
        )
        for row in model.rows
    )
    headings: tuple[str, ...] = ("variant", "key", "base", "adapter", "settings", "made with", "on", "at")
    headings += ("measured at", "measured on", "measured with")
    return Table("Provenance", headings, rows, frozenset(range(len(headings))))


def verdict(compared: Compared) -> str:
    """The difference between two targets with its interval and n, or that no difference is shown."""
    found = compared.difference
    if not found.differ:
        return f"no difference shown (n = {found.n})"
    scale, digits, unit = 1, ".3g", " nats/token"
    if (compared.kind, compared.metric.name) in (*RATES, AGREEMENT):
        scale, digits, unit = 100, ".1f", " points"
    elif (compared.kind, compared.metric.name) == PERPLEXITY:
        unit = " nats/token (its logarithm)"
    value = f"{scale * found.value:+{digits}}{unit}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({scale * found.low:+{digits}} to {scale * found.high:+{digits}}, n = {found.n})"


def _measured(told: Told | None) -> tuple[str, str, str]:
    return (told.when, told.where, told.how) if told else ("-", "-", "-")


def _named(name: str, digest: str) -> str:
    return f"{name} {digest[:12]}" if name else "-"


def _trim(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The table without the columns that are empty in every row."""
    used = [i for i in range(len(headings)) if not rows or any(row[i] != "-" for row in rows)]
    return tuple(headings[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows)
