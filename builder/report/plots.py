"""Draws the plots of a report as SVG text.

All ink has the colour of the text around the plot, so that a page can be light or dark. Shapes, lines and
labels tell variants apart, never colours. matplotlib (extra `report`) is imported when a plot is made. Equal
facts give equal bytes.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.report.cells import accuracy, divergence
from builder.report.facts import ModelReport, Row
from builder.spec.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#010203"  # stands for currentColor until the SVG is text
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES = ("-", "--", "-.", ":")
# How a plot looks outside a page: an <img> follows the reader's light or dark scheme.
_ALONE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


@dataclass(frozen=True)
class Plot:
    """One plot. `svg` begins with its <svg> element. `text` says in words what the plot shows."""

    name: str
    title: str
    text: str
    svg: str

    @property
    def file(self) -> str:
        """The content of an SVG file with only this plot."""
        end = self.svg.index(">") + 1
        return f'<?xml version="1.0" encoding="utf-8"?>\n{self.svg[:end]}{_ALONE}{self.svg[end:]}\n'


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plots(model: ModelReport) -> list[Plot]:
    """The plots for which a model has enough figures: two targets, or two blocks of a target."""
    found = [_size(model), _survival(model), _error(model), _kl(model)]
    return [plot for plot in found if plot is not None]


def _size(model: ModelReport) -> Plot | None:
    """Disk size against the first required rate, else the first rate. A line shows the requirement."""
    metric = accuracy(model)
    rows = [row for row in model.rows if metric and metric in row.figures]
    if metric is None or len(rows) < 2:
        return None
    figure, axes = _figure()
    for at, row in enumerate(rows):
        value = row.figures[metric]
        low, high = value.interval or (value.value, value.value)
        span = [[100 * (value.value - low)], [100 * (high - value.value)]]
        passed = "none" if row.verdict == "misses" else _INK
        axes.errorbar(
            row.size / 1e6,
            100 * value.value,
            yerr=span,
            fmt="o",
            color=_INK,
            markerfacecolor=passed,
            capsize=3,
        )
        # The name of a point stands away from the required line, so as not to cover the line's label.
        above = metric in model.required and value.value >= model.required[metric][1]
        _label(axes, row.variant, row.size / 1e6, 100 * value.value, left=at % 2 == 1, above=above)
    controls = [row for row in rows if metric in (row.control or {})]
    for row in controls:
        assert row.control is not None
        axes.plot(row.size / 1e6, 100 * row.control[metric].value, "x", color=_INK)
    said = f"{len(rows)} variants of {model.name}: size on disk against {metric}, with 95 % intervals."
    if controls:
        said += " Crosses: the base without adapter, quantized in the same way."
    if metric in model.required:
        operator, least = model.required[metric]
        axes.axhline(100 * least, color=_INK, linestyle="--", linewidth=0.8)
        axes.annotate(
            f"required {operator} {100 * least:g} %", (0.5, 100 * least), xycoords=("axes fraction", "data"),
            ha="left", va="bottom", fontsize=8, color=_INK,
        )  # fmt: skip
        said += " Hollow: misses a requirement."
    passing = [row for row in rows if row.verdict == "passes"]
    if passing:
        smallest = min(passing, key=lambda row: row.size)
        axes.axvline(smallest.size / 1e6, color=_INK, linestyle=":", linewidth=0.8)
        said += f" The smallest that meets all requirements: {smallest.variant}."
    axes.set_xlabel("MB on disk")
    axes.set_ylabel(f"{metric}, %")
    axes.set_ylim(-9, 109)
    return _plot("size", "Size against quality", said, figure)


def _survival(model: ModelReport) -> Plot | None:
    """The adapter's change against the rounding error, by block."""
    series = [(row, [b for b in row.blocks if b.survival.db is not None]) for row in model.rows]
    series = [(row, blocks) for row, blocks in series if len(blocks) > 1]
    if not series:
        return None
    order = list(dict.fromkeys(block.block for _, blocks in series for block in blocks))
    figure, axes = _figure()
    for at, (row, blocks) in enumerate(series):
        values = [block.survival.db or 0.0 for block in blocks]
        _line(axes, at, row.variant, [order.index(block.block) for block in blocks], values, size=3.5)
    axes.axhline(0, color=_INK, linewidth=0.5)
    axes.set_xlabel("adapted block")
    _ticks(axes, order)
    axes.set_ylabel("survival, dB")
    axes.margins(x=0.12)
    said = (
        f"The adapter's change against the rounding error in each adapted block ({order[0]} to {order[-1]}), "
        "in dB, estimated from a sample."
    )
    return _plot("survival", "Survival by block", said, figure)


def _error(model: ModelReport) -> Plot | None:
    """The rounding error of all quantized weights, by block, also for models without an adapter."""
    series = [(row, row.blocks) for row in model.rows if len(row.blocks) > 1]
    if not series:
        return None
    order = list(dict.fromkeys(block.block for _, blocks in series for block in blocks))
    figure, axes = _figure()
    for at, (row, blocks) in enumerate(series):
        values = [100 * block.survival.error for block in blocks]
        _line(axes, at, row.variant, [order.index(block.block) for block in blocks], values, size=3.0)
    axes.set_xlabel("block")
    _ticks(axes, order)
    axes.set_yscale("log")
    axes.set_ylabel("quantization error, %")
    axes.margins(x=0.1)
    said = (
        f"Quantization error of each block ({order[0]} to {order[-1]}): rounding error against weights, "
        "logarithmic, estimated from a sample."
    )
    return _plot("error", "Quantization error by block", said, figure)


def _line(axes: Axes, at: int, name: str, x: Sequence[int], y: Sequence[float], *, size: float) -> None:
    """The line of one variant. Dashes, marks and the name tell variants apart."""
    line, mark = _LINES[at % len(_LINES)], _MARKS[at % len(_MARKS)]
    axes.plot(x, y, line, marker=mark, markersize=size, linewidth=0.9, color=_INK)
    _beside(axes, name, x[-1], y[-1])


def _ticks(axes: Axes, blocks: Sequence[str]) -> None:
    """Labels as many blocks as fit. An outer block has no number, and gets its first letters."""
    step = -(-len(blocks) // 16)
    at = range(0, len(blocks), step)
    axes.set_xticks(at, [_short(blocks[i])[:5] for i in at], fontsize=8)


def _kl(model: ModelReport) -> Plot | None:
    """The KL to the unquantized model, by variant, with the KL of the control beside it."""
    metric = divergence(model)
    if metric is None:
        return None
    rows = [row for row in model.rows if metric in row.figures and row.figures[metric].value > 1e-6]
    if len(rows) < 2:
        return None
    figure, axes = _figure()
    for at, row in enumerate(rows):
        _point(axes, row, at, metric, model.required.get(metric))
    if metric in model.required:
        operator, value = model.required[metric]
        axes.axhline(value, color=_INK, linestyle="--", linewidth=0.8)
        axes.annotate(
            f"required {operator} {value:g}", (0.01, value), xycoords=("axes fraction", "data"),
            ha="left", va="bottom", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(range(len(rows)), [row.variant for row in rows], fontsize=8)
    axes.set_ylabel("KL, nats per token")
    axes.margins(x=0.1)
    said = "Mean KL divergence from the unquantized model to each variant, 95 % intervals, logarithmic."
    if any(metric in (row.control or {}) for row in rows):
        said += (
            " Crosses: the base without adapter, quantized in the same way, against its own unquantized self."
        )
    return _plot("kl", "KL by variant", said, figure)


def _point(axes: Axes, row: Row, at: int, metric: Metric, required: tuple[str, float] | None) -> None:
    value = row.figures[metric]
    low, high = value.interval or (value.value, value.value)
    span = [[value.value - max(low, value.value / 10)], [high - value.value]]
    axes.errorbar(at, value.value, yerr=span, fmt="o", color=_INK, capsize=3)
    axes.annotate(
        f"{value.value:.2g}",
        (at, value.value),
        xytext=(7, -9 if required and value.value <= required[1] else 2),  # away from the required line
        textcoords="offset points",
        fontsize=8,
        color=_INK,
    )
    control = (row.control or {}).get(metric)
    if control is not None and control.value > 1e-6:
        axes.plot(at, control.value, "x", color=_INK)


def _beside(axes: Axes, text: str, x: float, y: float) -> None:
    """Writes a name at the end of a line."""
    axes.annotate(text, (x, y), xytext=(7, -3), textcoords="offset points", fontsize=8, color=_INK)


def _label(axes: Axes, text: str, x: float, y: float, *, left: bool, above: bool) -> None:
    """Writes a name beside a point. Callers alternate `left`, so that neighbours do not cover each other."""
    place, side = ((-6, 5), "right") if left else ((6, 5 if above else -11), "left")
    axes.annotate(text, (x, y), xytext=place, textcoords="offset points", ha=side, fontsize=8, color=_INK)


def _figure() -> tuple[Any, Axes]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _plot(name: str, title: str, text: str, figure: Any) -> Plot:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids must differ within a page
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px sans-serif", svg)
    size = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    assert size is not None
    svg = re.sub(r"<svg [^>]*>", _opening(size, title), svg, count=1)
    return Plot(name, title, text, svg.replace(_INK, "currentColor"))


def _opening(size: re.Match[str], title: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {size[1]} {size[2]}" width="{float(size[1]) * 1.4:.0f}" aria-label="{title}">'
    )


def _short(block: str) -> str:
    """The number of a transformer block, else its last name."""
    return block.rpartition(".")[2]
