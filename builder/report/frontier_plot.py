"""The plot of the frontier: bytes on disk against KL, with the line through the uniform variants.

Shapes tell the kinds of variants apart. Both axes make the line straight between two uniform variants: bytes,
and the logarithm of the KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.console.states import limit_text
from builder.report.answer import chosen_row
from builder.report.cells import divergence, number_text
from builder.report.drawing import GOOD, INK, Plot, canvas, svg_of
from builder.report.facts import Kind, ModelReport, Row
from builder.report.frontier import KINDS, LEAST, sentences, shown_rows
from builder.report.points import (
    FONT,
    RING,
    SMALL_RING,
    Named,
    level_lines,
    logarithmic,
    size_axis,
    slanting_lines,
    write_legend,
    write_names,
    zone,
)
from builder.spec.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Size against KL"
_OURS: dict[str, Any] = {"markersize": 10, "color": INK}
_THEIRS: dict[str, Any] = {"markersize": 8, "color": INK, "markerfacecolor": "none"}
_LOOK: dict[Kind, dict[str, Any]] = {
    "uniform": {"marker": "o", "markersize": 7, "color": INK},
    "mixed": {"marker": "s", **_THEIRS},
    "learned": {"marker": "^", **_THEIRS},
    "calibrated": {"marker": "D", **_OURS, "markersize": 8},
    "chosen bits": {"marker": "*", **_OURS, "markersize": 13},
    "fewer experts": {"marker": "P", **_THEIRS, "markersize": 9},
}
_PLAIN: dict[str, Any] = {"marker": "x", "color": INK, "markersize": 5, "linestyle": "none"}


@dataclass(frozen=True)
class _Facts:
    """What the plot draws."""

    model: ModelReport
    metric: Metric
    rows: Sequence[Row]
    line: Sequence[Row]
    chosen: Row | None

    def span(self, row: Row) -> tuple[float, float]:
        """The interval, without what a logarithmic axis cannot show."""
        figure = row.figures[self.metric]
        low, high = figure.interval or (figure.value, figure.value)
        return max(low, figure.value / 10), high

    def control(self, row: Row) -> float | None:
        """The KL of the base without adapter in the same quantization, if the axis can show it."""
        figure = (row.control or {}).get(self.metric)
        return figure.value if figure is not None and figure.value > LEAST else None


def frontier_plot(model: ModelReport) -> Plot | None:
    """The plot, wide and narrow. None with fewer than two targets whose KL is measured."""
    metric, rows = divergence(model), shown_rows(model)
    if metric is None or len(rows) < 2:
        return None
    names = model.frontier.line if model.frontier else ()
    line = [row for row in rows if row.target in names]
    chosen = chosen_row(model)
    facts = _Facts(model, metric, rows, line, chosen if chosen in rows else None)
    (wide, named), (narrow, _) = _drawn(facts, 12.0, 5.0), _drawn(facts, 5.0, 6.4)
    said = [*sentences(model), _said(facts)]
    said += [] if named else ["The table has the names of all points."]
    return Plot(
        "frontier",
        TITLE,
        " ".join(said),
        svg_of(wide, "frontier", TITLE, 1.4),
        svg_of(narrow, "frontier-narrow", TITLE, 1),
    )


def _drawn(facts: _Facts, width: float, height: float) -> tuple[Any, bool]:
    """The figure, and whether every point has its name."""
    figure, axes = canvas(width, height, FONT)
    size_axis(axes, [row.size / 1e6 for row in facts.rows], in_powers=False)
    _kl_axis(facts, axes)
    if (limit := facts.model.required.get(facts.metric)) is not None:
        zone(axes, limit[0], limit[1], [facts.span(row)[0] for row in facts.rows])
    corners = [(row.size / 1e6, row.figures[facts.metric].value) for row in facts.line]
    if corners:
        axes.plot(*zip(*corners, strict=True), color=INK, linestyle="--", linewidth=1)
    for row in facts.rows:
        _point(facts, axes, row)
    write_legend(figure, _legend(facts))
    lines = level_lines(axes, [limit[1]] if limit else []) + slanting_lines(axes, corners)
    crosses = [(row.size / 1e6, value) for row in facts.rows if (value := facts.control(row)) is not None]
    points = [
        Named(
            row.variant,
            row.size / 1e6,
            row.figures[facts.metric].value,
            facts.span(row),
            is_chosen=row is facts.chosen,
        )
        for row in sorted(facts.rows, key=lambda row: row is not facts.chosen)
    ]
    return figure, write_names(axes, points, lines, crosses)


def _kl_axis(facts: _Facts, axes: Axes) -> None:
    spans = [facts.span(row) for row in facts.rows]
    low, high = min(low for low, _ in spans) / 1.3, max(high for _, high in spans) * 1.3
    logarithmic(axes, low, high)
    axes.set_ylabel("KL, nats per token")
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _point(facts: _Facts, axes: Axes, row: Row) -> None:
    x, y, (low, high) = row.size / 1e6, row.figures[facts.metric].value, facts.span(row)
    axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="none", ecolor=INK, elinewidth=0.9)
    if row.kind is not None:
        axes.plot(x, y, linestyle="none", **_LOOK[row.kind])
    if row is facts.chosen:
        axes.plot(x, y, **RING)
    if (control := facts.control(row)) is not None:
        axes.plot(x, control, scaley=False, **_PLAIN)


def _legend(facts: _Facts) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    made: list[Any] = []
    if facts.chosen is not None:
        made.append(Line2D([], [], linestyle="none", label="smallest that passes", **SMALL_RING))
    for kind, words in KINDS.items():
        if any(row.kind == kind for row in facts.rows):
            made.append(Line2D([], [], linestyle="none", label=words, **_LOOK[kind]))
    if facts.line:
        made.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="line of uniform bits"))
    if (limit := facts.model.required.get(facts.metric)) is not None:
        said = limit_text(limit[0], number_text(facts.model, facts.metric, limit[1]))
        made.append(Patch(facecolor=GOOD, alpha=0.3, label=f"required: KL {said}"))
    if any(facts.control(row) for row in facts.rows):
        made.append(Line2D([], [], label="base without adapter, against itself", **_PLAIN))
    return made


def _said(facts: _Facts) -> str:
    said = f"{facts.model.name}: size on disk against the mean KL from the unquantized model, logarithmic"
    if any(row.figures[facts.metric].interval for row in facts.rows):
        said += ", with 95 % intervals"
    said += "."
    if any(facts.control(row) for row in facts.rows):
        said += (
            " Crosses: the base without adapter, quantized in the same way, against its own unquantized self."
        )
    return said
