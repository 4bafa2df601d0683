"""A Report as tables and sentences of plain text, for the page, the Markdown and the terminal.

No sentence says more than its numbers: a rate stands with its interval and n, and two targets are called
different only where a paired test says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.console.words import size_text
from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import RATES
from builder.evaluate.statistics import Figure
from builder.report.facts import Compared, ModelReport, Row

_BY_KIND = {  # of the metrics whose name alone would say too little: how they are shown
    ("choice", "accuracy"): "%",
    ("choice", "greedy"): "%",
    ("exact", "rate"): "%",
    ("generate", "rate"): "%",
    ("fidelity", "agreement"): "%",
    ("fidelity", "kl"): "KL",
    ("fidelity", "kl_p99"): "KL",
    ("generate", "memory"): "GB",
}
_NAMES = {
    ("fidelity", "kl"): "KL",
    ("fidelity", "kl_p99"): "KL 99th percentile",
    ("fidelity", "agreement"): "same top token",
    ("generate", "tokens_per_second"): "tokens/s",
    ("generate", "seconds"): "s/query",
}


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; `text` are the columns that are words, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


def study(model: ModelReport, *, few: bool = False, brief: bool = False) -> Table:
    """One row for each target, and one for the base alone: what it costs and what it can do.

    `few`: without columns that another one stands for; `brief`: without intervals.
    """
    metrics = [metric for metric in model.metrics if shown_as(model, metric) != "GB"]
    metrics = [metric for metric in metrics if not few or not _second(model, metric)]
    headings = ["variant", "result", "levels", "disk", "memory", "bits/weight"]
    headings += [_heading(model, metric) for metric in metrics] + ["survival"]
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
            cells.append(_cell(model, metric, figure, brief=brief))
        cells.append(_survival(row))
        if not few:
            cells.append(f"{100 * row.survival.error:.2g} %" if row.survival else "-")
        rows.append(cells)
    return Table("What each variant costs and can do", *_trim(headings, rows), frozenset({0, 1}))


def answer(model: ModelReport) -> Table:
    """The study in six columns, without intervals: what a README says. `doubted` has what they leave open."""
    rate, distance = accuracy(model), divergence(model)
    headings = ["variant", "size", "bits per weight", "accuracy", "KL", "verdict"]
    rows = []
    for row in ((model.plain,) if model.plain else ()) + model.rows:
        alone = row is model.plain
        cells = [
            f"{row.variant}, no adapter" if alone else row.variant,
            size_text(row.size),
            f"{row.bits_per_weight:.2f}",
            _cell(model, rate, row.figures.get(rate), brief=True),
            _cell(model, distance, None if alone else row.figures.get(distance), brief=True),
            "-" if alone else _short_verdict(row),
        ]
        rows.append(cells)
    trimmed, body = _trim(headings, rows)
    return Table("The answer", trimmed, body, frozenset({0, len(trimmed) - 1}))


def accuracy(model: ModelReport) -> str:
    """The rate that stands for what a model can do: the first that is required, else the first; or ""."""
    rates = [m for m in model.metrics if shown_as(model, m) == "%" and not is_distance(model, m)]
    return next((m for m in model.required if m in rates), rates[0] if rates else "")


def divergence(model: ModelReport) -> str:
    """The distance to the unquantized model: the first that is required, else the first; or ""."""
    found = [m for m in model.metrics if is_distance(model, m) and m.endswith(".kl")]
    return next((m for m in model.required if m in found), found[0] if found else "")


def _short_verdict(row: Row) -> str:
    return f"{row.verdict}, not certain" if row.verdict == "passes" and row.doubts else row.verdict


def doubted(model: ModelReport) -> list[str]:
    """A sentence about the targets that pass, and whose true figures may not."""
    said: dict[str, list[str]] = {}
    for row in model.rows:
        if row.verdict == "passes" and row.doubts:
            said.setdefault(_ends(model, row, {accuracy(model): "accuracy"}), []).append(row.variant)
    return [f"Not certain for {', '.join(variants)}: {ends}." for ends, variants in said.items()]


def _second(model: ModelReport, metric: str) -> bool:
    """Whether another figure of its suite says more or less the same."""
    if metric in model.required:
        return False
    suite, _, name = metric.partition(".")
    match model.kinds.get(suite), name:
        case "choice", "accuracy":
            return f"{suite}.greedy" in model.required
        case "choice", "greedy":
            return f"{suite}.accuracy" in model.required
        case ("fidelity", "kl_p99") | ("generate", "tokens_per_second"):
            return True
    return False


def is_distance(model: ModelReport, metric: str) -> bool:
    """Whether a metric compares a target with its own unquantized self."""
    return model.kinds.get(metric.partition(".")[0]) == "fidelity"


def _result(model: ModelReport, row: Row, *, brief: bool) -> str:
    """The verdict, and what of it the intervals leave open."""
    if brief or row.verdict != "passes" or not row.doubts:
        return row.verdict
    return f"{row.verdict} ({_ends(model, row)})"


def _ends(model: ModelReport, row: Row, names: Mapping[str, str] = {}) -> str:
    """How far the intervals reach to the wrong side; `names` replaces the headings of metrics."""
    ends = []
    for metric, end in row.doubts.items():
        name = names.get(metric) or _heading(model, metric)
        side = "high" if model.required[metric][0].startswith("<") else "low"
        ends.append(f"the true {name} may be as {side} as {_number(model, metric, end)}")
    return " and ".join(ends)


_NO_KL = 0.0001  # less is rounding of float32


def whose_loss(model: ModelReport) -> Table | None:
    """Beside each variant the same quantization of the base without adapter; None without a control."""
    rows = [row for row in model.rows if row.control]
    metrics = [m for m in model.metrics if any(m in (row.control or {}) for row in rows)]
    metrics = [m for m in metrics if m.endswith((".kl", ".agreement", ".perplexity"))]
    if not rows or not metrics:
        return None
    headings = ["variant"]
    for metric in metrics:
        headings += [f"{_heading(model, metric)}, fine-tuned", f"{_heading(model, metric)}, base alone"]
    headings += ["survival", "cosine", "quantization error"]
    body = []
    for row in rows:
        cells = [row.variant]
        for metric in metrics:
            cells += [
                _cell(model, metric, row.figures.get(metric)),
                _cell(model, metric, (row.control or {}).get(metric)),
            ]
        sums = row.survival
        cells += [_survival(row), f"{sums.cosine:.3f}" if sums and sums.cosine is not None else "-"]
        cells.append(f"{100 * sums.error:.2g} %" if sums else "-")
        body.append(tuple(cells))
    return Table("Whose loss is it?", *_trim(headings, body))


def comparisons(model: ModelReport) -> Table | None:
    """What paired tests say of pairs of targets; None when nothing can be compared."""
    if not model.compared:
        return None
    prefix = f"{model.name}_"
    rows = tuple(
        (
            f"{compared.suite}.{compared.metric}",
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
    """Digests are shortened to 12 digits; the manifests hold them whole."""
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
    found = compared.difference
    if not found.differ:
        return f"no difference shown (n = {found.n})"
    scale, digits, unit = 1, ".3g", " nats/token"
    if (compared.kind, compared.metric) in RATES or compared.metric == "agreement":
        scale, digits, unit = 100, ".1f", " points"
    elif compared.kind == "perplexity":
        unit = " nats/token (its logarithm)"
    value = f"{scale * found.value:+{digits}}{unit}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({scale * found.low:+{digits}} to {scale * found.high:+{digits}}, n = {found.n})"


def shown_as(model: ModelReport, metric: str) -> str:
    """How a metric is shown: "%", "KL", "GB", or as the number that it is."""
    suite, _, name = metric.partition(".")
    return _BY_KIND.get((model.kinds.get(suite, ""), name), "")


def _heading(model: ModelReport, metric: str) -> str:
    suite, _, name = metric.partition(".")
    kind = model.kinds.get(suite, "")
    if kind == "fidelity":
        several = list(model.kinds.values()).count("fidelity") > 1
        return f"{suite} {_NAMES[kind, name]}" if several else _NAMES[kind, name]
    if name == "rate" and (kind, name) in _BY_KIND:
        return suite
    return f"{suite} {_NAMES.get((kind, name), name)}"


def _cell(model: ModelReport, metric: str, figure: Figure | None, *, brief: bool = False) -> str:
    if figure is None:
        return "-"
    scale = 100 if shown_as(model, metric) == "%" else 1
    if shown_as(model, metric) == "KL" and max(figure.value, figure.high or 0) < _NO_KL:
        return f"< {_NO_KL}"
    value = _number(model, metric, figure.value)
    if brief or figure.interval is None:
        return value
    low, high = figure.interval
    return f"{value} ({_short(scale * low)} to {_short(scale * high)})"


def _number(model: ModelReport, metric: str, value: float) -> str:
    return f"{_short(100 * value)} %" if shown_as(model, metric) == "%" else _short(value)


def _short(value: float) -> str:
    """Three significant digits, no exponent where that is readable."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def memory(model: ModelReport, row: Row) -> str:
    """The highest peak that a generate suite measured."""
    peaks = [figure.value for metric, figure in row.figures.items() if shown_as(model, metric) == "GB"]
    return size_text(max(peaks) * 1e9) if peaks else "-"


def _measured(told: Told | None) -> tuple[str, str, str]:
    return (told.when, told.where, told.how) if told else ("-", "-", "-")


def _survival(row: Row) -> str:
    if row.survival is None or row.survival.db is None:
        return "-"
    return f"{row.survival.db:.1f} dB"


def _named(name: str, digest: str) -> str:
    return f"{name} {digest[:12]}" if name else "-"


def _trim(
    headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Without the columns in which every row says nothing."""
    used = [i for i in range(len(headings)) if not rows or any(row[i] != "-" for row in rows)]
    return tuple(headings[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows)
