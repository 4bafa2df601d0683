"""Points over an axis of sizes: the axis, the zone that meets a requirement, and the names of the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from builder.report.drawing import GOOD, INK
from builder.report.labels import Box, Place, places

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 11.0
RING: dict[str, Any] = {
    "marker": "o",
    "color": GOOD,
    "markersize": 18,
    "markerfacecolor": "none",
    "markeredgewidth": 2,
}
SMALL_RING = RING | {"markersize": 13}  # in a legend
_WIDTH, _HEIGHT = 0.62 * FONT, 1.25 * FONT  # of a character and of a line, in points
_STEPS = 40  # boxes along a slanting line


@dataclass(frozen=True)
class Named:
    """A point, its name, and its interval on the y axis. The name of the chosen point is bold."""

    text: str
    x: float
    y: float
    span: tuple[float, float]
    is_chosen: bool = False


def size_axis(axes: Axes, sizes: Sequence[float], *, in_powers: bool) -> None:
    """An x axis for these sizes in MB, with round ticks in MB or GB."""
    low, high = min(sizes), max(sizes)
    if in_powers:
        axes.set_xscale("log", base=2)
        room = (high / low) ** 0.12
        left, right = low / room, high * room
    else:
        room = 0.08 * (high - low) or 0.2 * high
        left, right = max(low / 2, low - room), high + room
    axes.set_xlim(left, right)
    unit, name = (1000, "GB") if high >= 1000 else (1, "MB")
    at = (_ticks if in_powers else _even_ticks)(left / unit, right / unit)
    axes.set_xticks([tick * unit for tick in at], [f"{tick:g}" for tick in at])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"size on disk, {name}")


def _ticks(low: float, high: float) -> list[float]:
    """Round sizes from `low` to `high`: at most about six."""
    start = math.floor(math.log10(low))
    fine = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9) if high < 2.5 * low else (1, 1.5, 2, 3, 5, 7)
    coarse = fine if high < 20 * low else (1,) if high > 1000 * low else (1, 3)
    ticks = [step * 10.0**power for power in range(start, start + 8) for step in coarse]
    return [tick for tick in ticks if low <= tick <= high]


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of a round step from `low` to `high`: at most eight."""
    power = 10.0 ** math.floor(math.log10((high - low) / 8))
    step = next(step * power for step in (1, 2, 5, 10) if high - low <= 8 * step * power)
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """Makes the y axis logarithmic, from `low` to `high`, with round ticks."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    at = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(at, [f"{tick:g}" for tick in at])
    axes.set_yticks([], minor=True)


def zone(axes: Axes, operator: str, value: float, lows: Sequence[float]) -> None:
    """The green zone in which a point meets the requirement. `lows` are the lower ends of all points."""
    low, high = axes.get_ylim()
    high, low = max(high, value), min(low, value)
    if axes.get_yscale() == "log":
        low = min([value / 2, *(end for end in lows if end > 0)]) / 1.5
    edge = high if operator.startswith(">") else low
    axes.axhspan(min(value, edge), max(value, edge), facecolor=GOOD, alpha=0.16, linewidth=0)
    axes.axhline(value, color=GOOD, linewidth=1.4)
    axes.set_ylim(low, high)


def write_legend(figure: Any, handles: Sequence[Any]) -> None:
    """Writes the legend below the axes, and settles where everything stands."""
    columns = 1 if figure.get_figwidth() < 7 else 3
    figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, frameon=False, labelcolor=INK, fontsize=FONT
    )
    figure.draw_without_rendering()


def write_names(
    axes: Axes, points: Sequence[Named], lines: Sequence[Box], others: Sequence[tuple[float, float]] = ()
) -> bool:
    """Writes the names of the points where they cover nothing. Earlier points choose first.

    `others` are small marks without a name. Where many points are close, some stay without a name. Returns
    whether all have one.
    """
    at = [_pixels(axes, point.x, point.y) for point in points]
    sizes = [((1.1 if point.is_chosen else 1) * (len(point.text) * _WIDTH + 4), _HEIGHT) for point in points]
    bounds = _bounds(axes)
    small = [_pixels(axes, x, y) for x, y in others]
    marks = _marks(axes, points) + [Box(x - 4, y - 4, x + 4, y + 4) for x, y in small]
    found = places(at, sizes, marks, lines, bounds)
    for point, where, place in zip(points, at, found, strict=True):
        if place is not None:
            _write(axes, point, where, place)
    return None not in found


def level_lines(axes: Axes, values: Sequence[float]) -> list[Box]:
    """The horizontal lines at these values, which names should not cover."""
    bounds = _bounds(axes)
    heights = [_pixels(axes, 1, value)[1] for value in values]
    return [Box(bounds.left, y - 1, bounds.right, y + 1) for y in heights]


def slanting_lines(axes: Axes, corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along the line through these corners, which names should not cover."""
    at = [_pixels(axes, x, y) for x, y in corners]
    found = []
    for (left, low), (right, high) in pairwise(at):
        for step in range(_STEPS + 1):
            x, y = (a + step / _STEPS * (b - a) for a, b in ((left, right), (low, high)))
            found.append(Box(x - 2, y - 2, x + 2, y + 2))
    return found


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    right, up = axes.transData.transform((x, y))
    return float(right), float(up)


def _bounds(axes: Axes) -> Box:
    frame = axes.get_window_extent()
    return Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 1)


def _marks(axes: Axes, points: Sequence[Named]) -> list[Box]:
    """What no name may cover: the points and their intervals."""
    boxes = []
    for point in points:
        x, y = _pixels(axes, point.x, point.y)
        half = 10 if point.is_chosen else 6
        boxes.append(Box(x - half, y - half, x + half, y + half))
        low, high = (_pixels(axes, point.x, end)[1] for end in point.span)
        boxes.append(Box(x - 2, low, x + 2, high))
    return boxes


def _write(axes: Axes, named: Named, point: tuple[float, float], place: Place) -> None:
    x, y = (place.box.left + place.box.right) / 2, (place.box.low + place.box.high) / 2
    line = {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 5}
    made = axes.annotate(
        named.text,
        point,
        xytext=(x, y),
        xycoords="figure pixels",
        textcoords="figure pixels",
        ha="center",
        va="center_baseline",
        fontsize=FONT,
        arrowprops=line if place.is_far else None,
        color=GOOD if named.is_chosen else INK,
        weight="bold" if named.is_chosen else "normal",
    )
    made.set_in_layout(False)
