"""Draws the plots of a report: the answer, the frontier, and what each block contributes.

Shapes, lines and labels tell variants apart, never colours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from builder.report.cells import divergence
from builder.report.drawing import INK, Plot, canvas, svg_of
from builder.report.facts import ModelReport
from builder.report.frontier_plot import frontier_plot
from builder.report.labels import apart
from builder.report.points import logarithmic
from builder.report.size_plot import shown_metric, size_plot
from builder.report.training_plot import training_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES = ("-", "--", "-.", ":")


def plots(model: ModelReport) -> list[Plot]:
    """The plots for which a model has enough figures: two targets, or two blocks of a target.

    Where the KL is the figure that the large plot would show, the frontier shows it.
    """
    frontier = frontier_plot(model)
    size = None if frontier and shown_metric(model) == divergence(model) else size_plot(model)
    found = [size, frontier, training_plot(model), _survival(model), _error(model)]
    return [plot for plot in found if plot is not None]


def _survival(model: ModelReport) -> Plot | None:
    """The adapter's change against the rounding error, by block."""
    series = [(row, [b for b in row.blocks if b.survival.db is not None]) for row in model.rows]
    series = [(row, blocks) for row, blocks in series if len(blocks) > 1]
    if not series:
        return None
    order = list(dict.fromkeys(block.block for _, blocks in series for block in blocks))
    figure, axes = canvas()
    for at, (_, blocks) in enumerate(series):
        values = [block.survival.db or 0.0 for block in blocks]
        _line(axes, at, [order.index(block.block) for block in blocks], values, size=3.5)
    axes.axhline(0, color=INK, linewidth=0.5)
    axes.set_xlabel("adapted block")
    _ticks(axes, order)
    axes.set_ylabel("survival, dB")
    last = [(order.index(blocks[-1].block), blocks[-1].survival.db or 0.0) for _, blocks in series]
    _ends(figure, axes, [row.variant for row, _ in series], last)
    said = (
        f"The adapter's change against the rounding error in each adapted block ({order[0]} to {order[-1]}), "
        "in dB, estimated from a sample."
    )
    return Plot("survival", "Survival by block", said, svg_of(figure, "survival", "Survival by block"))


def _error(model: ModelReport) -> Plot | None:
    """The rounding error of all quantized weights, by block, also for models without an adapter."""
    series = [(row, row.blocks) for row in model.rows if len(row.blocks) > 1]
    if not series:
        return None
    order = list(dict.fromkeys(block.block for _, blocks in series for block in blocks))
    figure, axes = canvas()
    for at, (_, blocks) in enumerate(series):
        values = [100 * block.survival.error for block in blocks]
        _line(axes, at, [order.index(block.block) for block in blocks], values, size=3.0)
    axes.set_xlabel("block")
    _ticks(axes, order)
    errors = [100 * block.survival.error for _, blocks in series for block in blocks]
    if (least := min(errors)) > 0:
        logarithmic(axes, least / 1.2, 1.2 * max(errors))
    axes.set_ylabel("quantization error, %")
    last = [(order.index(blocks[-1].block), 100 * blocks[-1].survival.error) for _, blocks in series]
    _ends(figure, axes, [row.variant for row, _ in series], last)
    said = (
        f"Quantization error of each block ({order[0]} to {order[-1]}): rounding error against weights, "
        "logarithmic, estimated from a sample."
    )
    return Plot(
        "error", "Quantization error by block", said, svg_of(figure, "error", "Quantization error by block")
    )


def _line(axes: Axes, at: int, x: Sequence[int], y: Sequence[float], *, size: float) -> None:
    """The line of one variant. Dashes, marks and the name tell variants apart."""
    line, mark = _LINES[at % len(_LINES)], _MARKS[at % len(_MARKS)]
    axes.plot(x, y, line, marker=mark, markersize=size, linewidth=0.9, color=INK)


def _ends(figure: Any, axes: Axes, names: Sequence[str], ends: Sequence[tuple[int, float]]) -> None:
    """Writes the names of the lines at their ends, so that no name covers another name."""
    width = 72 * figure.get_figwidth() - 50  # of the axes, nearly
    room = (12 + 0.62 * 9 * max(map(len, names))) / width
    span = max(x for x, _ in ends)
    axes.set_xlim(-0.04 * span, span + span * room / (1 - room))
    figure.draw_without_rendering()  # settles where everything stands
    points = [axes.transData.transform(end) for end in ends]
    heights = apart([float(y) for _, y in points], 11, (0, float(figure.bbox.height)))
    for name, (x, y), height in zip(names, points, heights, strict=True):
        axes.annotate(
            name,
            (float(x), float(y)),
            xytext=(float(x) + 7, height),
            xycoords="figure pixels",
            textcoords="figure pixels",
            va="center",
            fontsize=9,
            color=INK,
        ).set_in_layout(False)


def _ticks(axes: Axes, blocks: Sequence[str]) -> None:
    """Labels as many blocks as fit. An outer block has no number, and gets its first letters."""
    step = -(-len(blocks) // 10)
    at = range(0, len(blocks), step)
    axes.set_xticks(at, [_short(blocks[i])[:5] for i in at], fontsize=9)


def _short(block: str) -> str:
    """The number of a transformer block, else its last name."""
    return block.rpartition(".")[2]
