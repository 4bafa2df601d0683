"""The large plot of a report: size against the figure that is required, with the zone that meets it.

Colour is never the only sign: shapes tell passes from misses, the zone has its words in the legend, and the
chosen point has a ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.console.states import Verdict, limit_text
from builder.console.words import size_text
from builder.report import answer
from builder.report.cells import accuracy, heading, number_text, shown_as
from builder.report.drawing import BAD, GOOD, INK, Plot, canvas, svg_of
from builder.report.facts import ModelReport, Row
from builder.report.labels import Box, Place, places
from builder.spec.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Size against quality"
_FONT = 11.0
_WIDTH, _HEIGHT = 0.62 * _FONT, 1.25 * _FONT  # of a character and of a line, in points
_RING: dict[str, Any] = {
    "marker": "o",
    "color": GOOD,
    "markersize": 18,
    "markerfacecolor": "none",
    "markeredgewidth": 2,
}
_LOOK: dict[Verdict, dict[str, Any]] = {
    "passes": {"marker": "o", "color": GOOD, "markersize": 9},
    "misses": {"marker": "X", "color": BAD, "markersize": 9},
    "not measured": {"marker": "D", "color": INK, "markersize": 7, "markerfacecolor": "none"},
    "nothing required": {"marker": "o", "color": INK, "markersize": 7},
}
_MEANING: dict[Verdict, str] = {
    "passes": "passes",
    "misses": "misses a requirement",
    "not measured": "a requirement is not measured",
    "nothing required": "measured",
}


@dataclass(frozen=True)
class _Facts:
    """What the plot draws. `scale` is 100 for a rate, which is shown in percent."""

    model: ModelReport
    metric: Metric
    rows: Sequence[Row]
    scale: float
    chosen: Row | None

    def value(self, row: Row) -> float:
        return self.scale * row.figures[self.metric].value

    def span(self, row: Row) -> tuple[float, float]:
        low, high = row.figures[self.metric].interval or (row.figures[self.metric].value,) * 2
        return self.scale * low, self.scale * high


def size_plot(model: ModelReport) -> Plot | None:
    """The plot, wide and narrow. None with fewer than two measured targets."""
    metric = shown_metric(model)
    rows = [row for row in model.rows if metric and metric in row.figures]
    if metric is None or len(rows) < 2:
        return None
    scale = 100 if shown_as(model, metric) == "%" else 1
    facts = _Facts(model, metric, rows, scale, answer.chosen_row(model))
    (wide, named), (narrow, _) = _drawn(facts, 12.0, 5.0), _drawn(facts, 5.0, 5.4)
    said = _said(facts) + ("" if named else " The table has the names of all points.")
    return Plot(
        "size", TITLE, said, svg_of(wide, "size", TITLE, 1.4), svg_of(narrow, "size-narrow", TITLE, 1)
    )


def shown_metric(model: ModelReport) -> Metric | None:
    """The required rate, else another required figure, else a rate."""
    rate = accuracy(model)
    if rate in model.required or not model.required:
        return rate
    return next((metric for metric in model.required if metric in model.metrics), rate)


def _drawn(facts: _Facts, width: float, height: float) -> tuple[Any, bool]:
    """The figure, and whether every point has its name."""
    figure, axes = canvas(width, height, _FONT)
    _scales(facts, axes)
    _zone(facts, axes)
    for row in facts.rows:
        x, y, (low, high) = row.size / 1e6, facts.value(row), facts.span(row)
        look = _LOOK[row.verdict]
        axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="none", ecolor=look["color"], elinewidth=0.9)
        axes.plot(x, y, linestyle="none", **look)
        if row is facts.chosen:
            axes.plot(x, y, **_RING)
    if (base := _base(facts)) is not None:
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
    narrow = width < 7
    figure.legend(
        handles=_legend(facts), loc="outside lower left", ncols=1 if narrow else 3, frameon=False,
        labelcolor=INK, fontsize=_FONT,
    )  # fmt: skip
    figure.draw_without_rendering()  # settles where everything stands
    return figure, _names(facts, axes)


def _scales(facts: _Facts, axes: Axes) -> None:
    sizes = [row.size / 1e6 for row in facts.rows]
    low, high = min(sizes), max(sizes)
    if high > 2 * low:
        axes.set_xscale("log", base=2)
    room = (high / low) ** 0.12 if high > low else 1.2
    axes.set_xlim(low / room, high * room)
    unit, name = (1000, "GB") if high >= 1000 else (1, "MB")
    at = _ticks(low / room / unit, high * room / unit)
    axes.set_xticks([tick * unit for tick in at], [f"{tick:g}" for tick in at])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"size on disk, {name}")
    axes.set_ylabel(heading(facts.model, facts.metric) + (", %" if facts.scale == 100 else ""))
    if facts.scale == 100:
        limit = facts.model.required.get(facts.metric)
        marked = [100 * limit[1]] if limit and 0 <= limit[1] <= 1 else []
        near = [tick for tick in range(0, 101, 20) if all(abs(tick - each) > 6 for each in marked)]
        at = sorted([*near, *marked])
        axes.set_yticks(at, [f"{tick:g}" for tick in at])
        axes.set_ylim(-7, 113)
    elif min(map(facts.value, facts.rows)) > 0 and _spread(facts) > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _spread(facts: _Facts) -> float:
    values = list(map(facts.value, facts.rows))
    return max(values) / min(values)


def _ticks(low: float, high: float) -> list[float]:
    """Round sizes from `low` to `high`: at most about six."""
    start = math.floor(math.log10(low))
    fine = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if high < 2.5 * low else (1, 1.5, 2, 3, 5, 7)
    coarse = fine if high < 20 * low else (1,) if high > 1000 * low else (1, 3)
    ticks = [step * 10.0**power for power in range(start, start + 8) for step in coarse]
    return [tick for tick in ticks if low <= tick <= high]


def _zone(facts: _Facts, axes: Axes) -> None:
    """The green zone in which a target meets the requirement on the shown figure."""
    limit = facts.model.required.get(facts.metric)
    if limit is None:
        return
    value = facts.scale * limit[1]
    low, high = axes.get_ylim()
    high, low = max(high, value), min(low, value)
    if axes.get_yscale() == "log":
        low = min([value / 2, *(facts.span(row)[0] for row in facts.rows if facts.span(row)[0] > 0)]) / 1.5
    edge = high if limit[0].startswith(">") else low
    axes.axhspan(min(value, edge), max(value, edge), facecolor=GOOD, alpha=0.16, linewidth=0)
    axes.axhline(value, color=GOOD, linewidth=1.4)
    axes.set_ylim(low, high)


def _base(facts: _Facts) -> float | None:
    """The figure of the unquantized base without adapter, where it is measured."""
    plain = facts.model.plain
    if plain is None or facts.metric not in plain.figures or facts.scale != 100:
        return None
    return facts.scale * plain.figures[facts.metric].value


def _legend(facts: _Facts) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    made: list[Any] = []
    if facts.chosen is not None:
        ring = _RING | {"markersize": 13}
        made.append(Line2D([], [], linestyle="none", label="smallest that passes", **ring))
    for verdict, look in _LOOK.items():
        if any(row.verdict == verdict for row in facts.rows):
            made.append(Line2D([], [], linestyle="none", label=_MEANING[verdict], **look))
    if facts.metric in facts.model.required:
        made.append(Patch(facecolor=GOOD, alpha=0.3, label=f"required: {_limit(facts)}"))
    if _base(facts) is not None:
        name = f"{facts.model.base}, no adapter"
        made.append(Line2D([], [], color=INK, linestyle=":", linewidth=1, label=name))
    return made


def _limit(facts: _Facts) -> str:
    operator, value = facts.model.required[facts.metric]
    said = limit_text(operator, number_text(facts.model, facts.metric, value))
    return f"{heading(facts.model, facts.metric)} {said}"


def _names(facts: _Facts, axes: Axes) -> bool:
    """Writes the names of the points where they cover nothing. The chosen point chooses first.

    Where many points are close, some stay without a name. Returns whether all have one.
    """
    order = sorted(facts.rows, key=lambda row: row is not facts.chosen)
    texts = [row.variant + _remark(facts, row) for row in order]
    at = {row.target: axes.transData.transform((row.size / 1e6, facts.value(row))) for row in facts.rows}
    points = [(float(at[row.target][0]), float(at[row.target][1])) for row in order]
    sizes = [(len(text) * _WIDTH + 4, _HEIGHT) for text in texts]
    if facts.chosen is not None:
        sizes[0] = (1.1 * sizes[0][0], sizes[0][1])  # its name is bold
    frame = axes.get_window_extent()
    bounds = Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 1)
    found = places(points, sizes, _marks(facts, axes, points), _lines(facts, axes, bounds), bounds)
    for row, text, point, place in zip(order, texts, points, found, strict=True):
        if place is not None:
            _write(axes, text, point, place, bold=row is facts.chosen)
    return None not in found


def _remark(facts: _Facts, row: Row) -> str:
    """What stands behind a name: the chosen size, or what a point in the green zone misses."""
    if row is facts.chosen:
        return f", {size_text(row.size)}"
    missed = [metric for metric in facts.model.required if answer.misses(row, metric)]
    if not missed or facts.metric in missed or facts.metric not in facts.model.required:
        return ""
    return f", misses {heading(facts.model, missed[0])}"


def _marks(facts: _Facts, axes: Axes, points: Sequence[tuple[float, float]]) -> list[Box]:
    """What no name may cover: the points and their intervals."""
    boxes = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    boxes += [Box(x - 10, y - 10, x + 10, y + 10) for x, y in points[:1] if facts.chosen]
    for row in facts.rows:
        low, high = (float(axes.transData.transform((row.size / 1e6, end))[1]) for end in facts.span(row))
        x = float(axes.transData.transform((row.size / 1e6, facts.value(row)))[0])
        boxes.append(Box(x - 2, low, x + 2, high))
    return boxes


def _lines(facts: _Facts, axes: Axes, bounds: Box) -> list[Box]:
    limit = facts.model.required.get(facts.metric)
    values = [facts.scale * limit[1]] if limit else []
    values += [base for base in [_base(facts)] if base is not None]
    heights = [float(axes.transData.transform((1, value))[1]) for value in values]
    return [Box(bounds.left, y - 1, bounds.right, y + 1) for y in heights]


def _write(axes: Axes, text: str, point: tuple[float, float], place: Place, *, bold: bool) -> None:
    x, y = (place.box.left + place.box.right) / 2, (place.box.low + place.box.high) / 2
    line = {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 5}
    made = axes.annotate(
        text,
        point,
        xytext=(x, y),
        xycoords="figure pixels",
        textcoords="figure pixels",
        ha="center",
        va="center_baseline",
        fontsize=_FONT,
        arrowprops=line if place.is_far else None,
        color=GOOD if bold else INK,
        weight="bold" if bold else "normal",
    )
    made.set_in_layout(False)


def _said(facts: _Facts) -> str:
    said = f"{len(facts.rows)} variants of {facts.model.name}: size on disk against {facts.metric}"
    if any(row.figures[facts.metric].interval for row in facts.rows):
        said += ", with 95 % intervals"
    said += "."
    if len(facts.model.required) > 1 and facts.metric in facts.model.required:
        said += " A point in the green zone can miss another requirement."
    if facts.chosen is not None:
        said += f" The smallest that meets all requirements: {facts.chosen.variant}."
    return said
