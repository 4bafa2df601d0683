"""A Report as tables and sentences of plain text, for the page, the Markdown and the terminal.

No sentence says more than its numbers: a rate stands with its interval and n, and two targets are called
different only where a paired test says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.evaluate.statistics import Figure
from builder.report.facts import Compared, ModelReport, Row
from builder.sizes import size_text

PERCENT = frozenset({"accuracy", "greedy", "rate", "agreement"})


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; `text` are the columns that are words, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})


def study(model: ModelReport, *, brief: bool = False) -> Table:
    """One row for each target: what it costs and what it can do; `brief`: without intervals."""
    metrics = [metric for metric in model.metrics if metric.partition(".")[2] not in _HIDDEN]
    headings = ["variant", "result", "levels", "disk", "memory", "bits/weight"]
    headings += [_heading(metric) for metric in metrics] + ["survival"]
    rows = [
        (
            row.variant,
            row.verdict,
            row.levels,
            size_text(row.size),
            _memory(row),
            f"{row.bits_per_weight:.2f}",
            *(_cell(metric, row.figures.get(metric), brief=brief) for metric in metrics),
            _survival(row),
        )
        for row in model.rows
    ]
    return Table("What each variant costs and can do", *_trim(headings, rows), frozenset({0, 1}))


_NO_KL = 0.0001  # less is rounding of float32
_HIDDEN = frozenset({"kl_p99", "memory"})


def whose_loss(model: ModelReport) -> Table | None:
    """Beside each variant the same quantization of the base without adapter; None without a control."""
    rows = [row for row in model.rows if row.control]
    metrics = [m for m in model.metrics if any(m in (row.control or {}) for row in rows)]
    metrics = [m for m in metrics if m.partition(".")[2] in ("kl", "agreement", "perplexity")]
    if not rows or not metrics:
        return None
    headings = ["variant"]
    for metric in metrics:
        headings += [f"{_heading(metric)}, fine-tuned", f"{_heading(metric)}, base alone"]
    headings += ["survival", "cosine", "quantization error"]
    body = []
    for row in rows:
        cells = [row.variant]
        for metric in metrics:
            cells += [
                _cell(metric, row.figures.get(metric)),
                _cell(metric, (row.control or {}).get(metric)),
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
            compared.suite,
            compared.first.removeprefix(prefix),
            compared.second.removeprefix(prefix),
            verdict(compared),
            "-" if compared.difference.p is None else f"{compared.difference.p:.2g}",
        )
        for compared in model.compared
    )
    return Table(
        "Differences that paired tests show",
        ("suite", "from", "to", "difference", "p"),
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
            row.provenance.created,
            row.provenance.measured_with or "-",
        )
        for row in model.rows
    )
    headings = ("variant", "key", "base", "adapter", "settings", "made with", "on", "at", "measured with")
    return Table("Provenance", headings, rows, frozenset(range(len(headings))))


def notes(model: ModelReport) -> list[str]:
    """Sentences that go with the tables."""
    said = []
    counts = {
        suite: max(
            (figure.n for row in model.rows for m, figure in row.figures.items() if _of(m, suite)), default=0
        )
        for suite in model.kinds
    }
    asked = [f"{suite} n = {count}" for suite, count in counts.items() if count]
    if asked:
        said.append(f"In brackets the 95 % interval ({', '.join(asked)}).")
    else:
        said.append("Nothing is measured yet: `doit eval` measures what [model] suites name.")
    if model.required:
        conditions = [f"{name} {operator} {value:g}" for name, (operator, value) in model.required.items()]
        said.append(f"Required: {', '.join(conditions)}.")
    said += [
        f"{row.variant} misses {'; '.join(row.misses)}." for row in model.rows if row.verdict == "misses"
    ]
    if any(name.endswith(".kl") for name in model.metrics):
        said.append("KL and same top token: against the fused, unquantized model on the same text.")
    if any(row.survival for row in model.rows):
        said.append(
            "Survival: the adapter's change against the rounding error, in dB, in the adapted weights; "
            "0 dB means that both are of one size."
        )
    if not any("memory" in metric for metric in model.metrics):
        said.append("Memory: the bytes of the weights; a generate suite measures the peak.")
    if model.adapter and model.control is None:
        said.append(
            f'No control: a model with base = "{model.base}", no adapter and the same variants would show '
            "what quantization does without the fine-tune."
        )
    if model.absent:
        said.append(f"Not built: {', '.join(model.absent)}.")
    return said


def verdict(compared: Compared) -> str:
    found = compared.difference
    if not found.differ:
        return f"no difference shown (n = {found.n})"
    if found.p is not None:
        value, low, high = (100 * number for number in (found.value, found.low, found.high))
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}, n = {found.n})"
    return f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g}, n = {found.n})"


def _of(metric: str, suite: str) -> bool:
    return metric.partition(".")[0] == suite


def _heading(metric: str) -> str:
    suite, _, name = metric.partition(".")
    words = {"kl": "KL", "agreement": "same top token", "tokens_per_second": "tokens/s", "seconds": "s/query"}
    if name in ("kl", "agreement"):
        return words[name]
    return suite if name == "rate" else f"{suite} {words.get(name, name)}"


def _cell(metric: str, figure: Figure | None, *, brief: bool = False) -> str:
    if figure is None:
        return "-"
    scale, unit = (100, " %") if metric.partition(".")[2] in PERCENT else (1, "")
    if metric.endswith(".kl") and figure.high < _NO_KL:
        return f"< {_NO_KL}"
    value = _short(scale * figure.value)
    if brief or figure.low == figure.high:
        return f"{value}{unit}"
    return f"{value}{unit} ({_short(scale * figure.low)} to {_short(scale * figure.high)})"


def _short(value: float) -> str:
    """Three significant digits, no exponent where that is readable."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def _memory(row: Row) -> str:
    peaks = [figure.value for metric, figure in row.figures.items() if metric.endswith(".memory")]
    return size_text(max(peaks) * 1e9) if peaks else size_text(row.size)


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
