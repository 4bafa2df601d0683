"""Writes the cells of the report's tables: names of figures, units and digits.

A metric is a suite and the name of a figure. The name alone does not say what the figure is, because a
command may print a "kl" of its own. The kind of the suite says what the figure is.
"""

from __future__ import annotations

from builder.console.words import size_text
from builder.evaluate.statistics import Figure
from builder.report.facts import ModelReport, Row
from builder.spec.types import Metric

# (kind of suite, name of a figure)
KL = ("fidelity", "kl")
AGREEMENT = ("fidelity", "agreement")
PERPLEXITY = ("perplexity", "perplexity")

_SHOWN_AS = {
    ("choice", "accuracy"): "%",
    ("choice", "greedy"): "%",
    ("exact", "rate"): "%",
    ("generate", "rate"): "%",
    AGREEMENT: "%",
    KL: "KL",
    ("fidelity", "kl_p99"): "KL",
    ("generate", "memory"): "GB",
}
_NAMES = {
    KL: "KL",
    ("fidelity", "kl_p99"): "KL 99th percentile",
    AGREEMENT: "same top token",
    ("generate", "tokens_per_second"): "tokens/s",
    ("generate", "seconds"): "s/query",
}
_NO_KL = 0.0001  # smaller values are rounding errors of float32


def of_kind(model: ModelReport, metric: Metric) -> tuple[str, str]:
    """The kind of a metric's suite, and the name of the figure. Both together say what the figure means."""
    return model.kinds.get(metric.suite, ""), metric.name


def shown_as(model: ModelReport, metric: Metric) -> str:
    """How a metric is shown: "%", "KL", "GB", or "" for a plain number."""
    return _SHOWN_AS.get(of_kind(model, metric), "")


def is_distance(model: ModelReport, metric: Metric) -> bool:
    """Whether a metric compares a target with the unquantized fused model."""
    return model.kinds.get(metric.suite) == "fidelity"


def accuracy(model: ModelReport) -> Metric | None:
    """The rate that shows what a model can do: the first required rate, else the first rate, else None."""
    rates = [m for m in model.metrics if shown_as(model, m) == "%" and not is_distance(model, m)]
    return _first(model, rates)


def divergence(model: ModelReport) -> Metric | None:
    """The KL to the unquantized model: the first required KL, else the first KL, else None."""
    return _first(model, [metric for metric in model.metrics if of_kind(model, metric) == KL])


def _first(model: ModelReport, metrics: list[Metric]) -> Metric | None:
    required = [metric for metric in model.required if metric in metrics]
    return next(iter(required + metrics), None)


def heading(model: ModelReport, metric: Metric) -> str:
    """The heading of a metric's column."""
    kind, name = of_kind(model, metric)
    known = _NAMES.get((kind, name), name)
    if kind == "fidelity" and list(model.kinds.values()).count("fidelity") == 1:
        return known
    if name == "rate" and (kind, name) in _SHOWN_AS:
        return metric.suite
    return f"{metric.suite} {known}"


def cell(model: ModelReport, metric: Metric, figure: Figure | None, *, brief: bool = False) -> str:
    """A figure with its interval. `brief` leaves out the interval. "-" for None."""
    if figure is None:
        return "-"
    if shown_as(model, metric) == "KL" and max(figure.value, figure.high or 0) < _NO_KL:
        return f"< {_NO_KL}"
    value = number_text(model, metric, figure.value)
    if brief or figure.interval is None:
        return value
    scale = 100 if shown_as(model, metric) == "%" else 1
    low, high = figure.interval
    return f"{value} ({short(scale * low)} to {short(scale * high)})"


def number_text(model: ModelReport, metric: Metric, value: float) -> str:
    """A value of a metric, with its unit."""
    return f"{short(100 * value)} %" if shown_as(model, metric) == "%" else short(value)


def short(value: float) -> str:
    """A number with three significant digits, without an exponent for large numbers below a million."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def memory(model: ModelReport, row: Row) -> str:
    """The highest peak of memory that a generate suite measured. "-" without a measure."""
    peaks = [figure.value for metric, figure in row.figures.items() if shown_as(model, metric) == "GB"]
    return size_text(max(peaks) * 1e9) if peaks else "-"


def decibels(row: Row) -> str:
    """How much of the adapter's change survives, in dB. "-" without a measure."""
    return "-" if row.survival is None or row.survival.db is None else f"{row.survival.db:.1f} dB"


def error_text(row: Row) -> str:
    """The quantization error in percent of the weights. "-" without a measure."""
    return f"{100 * row.survival.error:.2g} %" if row.survival else "-"
