"""Turns a Report into tables of plain text, for the page, the Markdown and the terminal.

No cell says more than its numbers. A rate comes with its interval. Two targets are called different only
where a paired test says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.console.states import verdict_text
from builder.console.words import size_text
from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import RATES
from builder.report.answer import chosen_row, doubts_text
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
from builder.report.frontier import KINDS, ratio_text

MOST_COLUMNS = 7  # of the table that a reader sees first


@dataclass(frozen=True)
class Table:
    """A table of text. `text` holds the indices of the columns with words. Other columns hold figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


def key(model: ModelReport, *, brief: bool = False) -> Table:
    """What a reader looks at first, in at most seven columns. `brief`: no intervals, remarks and survival.

    The figures are the first three required figures, else the accuracy and the KL.
    """
    asked = [metric for metric in model.required if metric in model.metrics][:3]
    shown = asked or [metric for metric in (accuracy(model), divergence(model)) if metric]
    headings = ["variant", "verdict", "size", "bits/weight", *(heading(model, metric) for metric in shown)]
    headings += [] if brief else ["survival", "memory"]
    rows = []
    for row in _with_plain(model):
        alone = row is model.plain
        cells = [
            _name(model, row) + ("" if brief else _remark(model, row)),
            verdict_text(row.verdict, certain=not row.doubts) if model.required and not alone else "-",
            size_text(row.size),
            f"{row.bits_per_weight:.2f}",
        ]
        for metric in shown:
            figure = None if alone and is_distance(model, metric) else row.figures.get(metric)
            cells.append(cell(model, metric, figure, brief=brief))
        rows.append(cells if brief else [*cells, decibels(row), memory(model, row)])
    trimmed, body = _trim(headings, rows)
    fitting = tuple(cells[:MOST_COLUMNS] for cells in body)
    words = frozenset(at for at, name in enumerate(trimmed) if name in ("variant", "verdict"))
    return Table("The variants", trimmed[:MOST_COLUMNS], fitting, words)


def _with_plain(model: ModelReport) -> tuple[Row, ...]:
    """The rows of a model, after the row of the base alone."""
    return ((model.plain,) if model.plain else ()) + model.rows


def _name(model: ModelReport, row: Row) -> str:
    return f"{row.variant}, no adapter" if row is model.plain else row.variant


def _remark(model: ModelReport, row: Row) -> str:
    """What else a variant is, in brackets: the answer of the report, or production."""
    chosen, made = chosen_row(model), model.production
    said = ["smallest that passes"] if row is chosen else []
    said += ["production"] if made and made.is_current and made.target == row.target else []
    return f" ({', '.join(said)})" if said else ""


def every(model: ModelReport) -> Table:
    """All figures: one row for each figure, and one column for each variant."""
    table = study(model)
    columns = tuple(zip(table.headings, *table.rows, strict=True))
    return Table("All figures", ("figure", *(columns[0][1:] if columns else ())), columns[1:])


def study(model: ModelReport) -> Table:
    """What each target costs and can do: one row for each target, and one row for the base alone."""
    metrics = [metric for metric in model.metrics if shown_as(model, metric) != "GB"]
    headings = ["variant", "result", "levels", "size", "memory", "bits/weight"]
    headings += [heading(model, metric) for metric in metrics] + ["survival", "quantization error"]
    rows = []
    for row in _with_plain(model):
        alone = row is model.plain
        cells = [
            _name(model, row),
            "-" if alone else verdict_text(row.verdict, certain=not row.doubts),
            row.levels,
            size_text(row.size),
            memory(model, row),
            f"{row.bits_per_weight:.2f}",
        ]
        for metric in metrics:
            figure = None if alone and is_distance(model, metric) else row.figures.get(metric)
            cells.append(cell(model, metric, figure))
        rows.append([*cells, decibels(row), error_text(row)])
    return Table("All figures", *_trim(headings, rows), frozenset({0, 1}))


def doubted(model: ModelReport) -> list[str]:
    """Sentences about the targets that pass although their true figures may not."""
    said: dict[str, list[str]] = {}
    for row in model.rows:
        if row.verdict == "passes" and row.doubts:
            said.setdefault(doubts_text(model, row), []).append(row.variant)
    return [f"Not certain for {', '.join(variants)}: {ends}." for ends, variants in said.items()]


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


def beside_line(model: ModelReport) -> Table | None:
    """The KL of each target beside the KL of the line through the uniform targets at the same bytes."""
    found = model.frontier
    if found is None or not found.beside:
        return None
    by_name = {row.target: row for row in model.rows}
    rows = []
    for each in found.beside:
        row = by_name[each.target]
        rows.append(
            (
                row.variant,
                KINDS[row.kind] if row.kind else "-",
                size_text(row.size),
                cell(model, found.metric, row.figures[found.metric], brief=True),
                number_text(model, found.metric, each.ratio.line),
                ratio_text(each),
            )
        )
    headings = ("variant", "how", "size", "KL", "KL of the line", "KL / line")
    return Table("Beside the line of uniform bits", headings, tuple(rows), frozenset({0, 1}))


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
