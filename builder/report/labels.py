"""Places for the names of points, so that no name covers another name, a point or a line. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_DISTANCES = (9, 16, 26, 38, 52, 68, 86)
_NEAR = 9  # points from a line


@dataclass(frozen=True)
class Box:
    """A rectangle. x grows to the right, y grows upwards."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.low < other.high
            and other.low < self.high
        )

    def inside(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.low >= other.low
            and self.high <= other.high
        )


@dataclass(frozen=True)
class Place:
    """Where a text stands. `is_far` says that a line must lead from the point to the text."""

    box: Box
    is_far: bool


def places(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    lines: Sequence[Box],
    bounds: Box,
) -> list[Place]:
    """A place for the text of each point. Earlier points choose first.

    No text covers an obstacle or another text. No line to a far text touches another point. A text covers one
    of `lines` only if no other place is free. Without any free place the text stands at the last place that
    was tried.
    """
    taken: list[Box] = list(obstacles)
    found = []
    for point, size in zip(points, sizes, strict=True):
        place = _place(point, size, [*taken, *lines], points, bounds)
        place = place or _place(point, size, taken, points, bounds)
        if place is None:
            place = Place(_box(point, size, _DIRECTIONS[-1], _DISTANCES[-1]), is_far=True)
        found.append(place)
        taken.append(place.box)
    return found


def _place(
    point: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[Box],
    points: Sequence[tuple[float, float]],
    bounds: Box,
) -> Place | None:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            box = _box(point, size, direction, distance)
            is_far = distance > _DISTANCES[1]
            if not box.inside(bounds) or any(box.meets(other) for other in taken):
                continue
            if not is_far or not any(_is_near(other, point, box) for other in points if other != point):
                return Place(box, is_far)
    return None


def _is_near(other: tuple[float, float], point: tuple[float, float], box: Box) -> bool:
    """Whether another point is near the line from a point to the middle of its text."""
    (x, y), end_x, end_y = point, (box.left + box.right) / 2, (box.low + box.high) / 2
    length = (end_x - x) ** 2 + (end_y - y) ** 2
    share = ((other[0] - x) * (end_x - x) + (other[1] - y) * (end_y - y)) / length
    share = min(1.0, max(0.0, share))
    return math.dist(other, (x + share * (end_x - x), y + share * (end_y - y))) < _NEAR


def _box(
    point: tuple[float, float], size: tuple[float, float], direction: tuple[int, int], distance: float
) -> Box:
    """The box of a text in this direction from the point. A text above or below is centred."""
    (x, y), (width, height), (right, up) = point, size, direction
    left = x - width / 2 + right * (distance + width / 2)
    low = y - height / 2 + up * (distance + height / 2)
    return Box(left, low, left + width, low + height)
