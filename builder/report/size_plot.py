"""The large plot of a report: size against the figure that is required, with the zone that meets it.

Colour is never the only sign: shapes tell passes from misses, the zone has its words in the legend, and the
chosen point has a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.console.states import Verdict, limit_text
from builder.console.words import size_text
from builder.report import answer
from builder.report.cells import accuracy, heading, number_text, shown_as
from builder.report.drawing import BAD, GOOD, INK, Plot, canvas, svg_of
from builder.report.facts import ModelReport, Row
from builder.report.points import (
    FONT,
    RING,
    SMALL_RING,
    Named,
    level_lines,
    size_axis,
    write_legend,
    write_names,
    zone,
)
from builder.spec.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Size against quality"
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
    figure, axes = canvas(width, height, FONT)
    _scales(facts, axes)
    if (limit := facts.model.required.get(facts.metric)) is not None:
        zone(axes, limit[0], facts.scale * limit[1], [facts.span(row)[0] for row in facts.rows])
    for row in facts.rows:
        x, y, (low, high) = row.size / 1e6, facts.value(row), facts.span(row)
        look = _LOOK[row.verdict]
        axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="none", ecolor=look["color"], elinewidth=0.9)
        axes.plot(x, y, linestyle="none", **look)
        if row is facts.chosen:
            axes.plot(x, y, **RING)
    if (base := _base(facts)) is not None:
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
    write_legend(figure, _legend(facts))
    return figure, _names(facts, axes)


def _scales(facts: _Facts, axes: Axes) -> None:
    sizes = [row.size / 1e6 for row in facts.rows]
    size_axis(axes, sizes, in_powers=max(sizes) > 2 * min(sizes))
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
        made.append(Line2D([], [], linestyle="none", label="smallest that passes", **SMALL_RING))
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
    """Writes the names of the points. The chosen point chooses its place first. Whether all have one."""
    order = sorted(facts.rows, key=lambda row: row is not facts.chosen)
    points = [
        Named(
            row.variant + _remark(facts, row),
            row.size / 1e6,
            facts.value(row),
            facts.span(row),
            is_chosen=row is facts.chosen,
        )
        for row in order
    ]
    limit = facts.model.required.get(facts.metric)
    values = [facts.scale * limit[1]] if limit else []
    values += [base for base in [_base(facts)] if base is not None]
    return write_names(axes, points, level_lines(axes, values))


def _remark(facts: _Facts, row: Row) -> str:
    """What stands behind a name: the chosen size, or what a point in the green zone misses."""
    if row is facts.chosen:
        return f", {size_text(row.size)}"
    missed = [metric for metric in facts.model.required if answer.misses(row, metric)]
    if not missed or facts.metric in missed or facts.metric not in facts.model.required:
        return ""
    return f", misses {heading(facts.model, missed[0])}"


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
