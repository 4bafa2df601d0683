"""Places for the names of points, so that no name covers another name, a point or a line. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_DISTANCES = (9, 16, 26, 38, 52, 68, 86, 106, 128)
_NEAR = 9  # from a line to a point
_STEPS = 24  # at which a line is looked at


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

    No text covers an obstacle or another text. If possible, no text covers one of `lines`, and no line to a
    far text touches another point or text. Without any free place the text stands at the last place that was
    tried.
    """
    texts: list[Box] = []
    found = []
    for point, size in zip(points, sizes, strict=True):
        taken = [*obstacles, *texts]
        place = _place(point, size, [*taken, *lines], texts, points, bounds)
        place = place or _place(point, size, taken, texts, points, bounds)
        place = place or _place(point, size, taken, [], [], bounds)
        if place is None:
            place = Place(_box(point, size, _DIRECTIONS[-1], _DISTANCES[-1]), is_far=True)
        found.append(place)
        texts.append(place.box)
    return found


def apart(heights: Sequence[float], distance: float) -> list[float]:
    """Heights at least `distance` from each other, near the given heights and in the same order."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    found = [0.0] * len(heights)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _low(groups[-1], heights, distance) < _high(groups[-2], heights, distance):
            last = groups.pop()
            groups[-1] += last
    for group in groups:
        low = _low(group, heights, distance) + distance / 2
        for place, index in enumerate(group):
            found[index] = low + place * distance
    return found


def _low(group: Sequence[int], heights: Sequence[float], distance: float) -> float:
    """The lower end of a group of texts around the middle of their heights."""
    return sum(heights[index] for index in group) / len(group) - len(group) * distance / 2


def _high(group: Sequence[int], heights: Sequence[float], distance: float) -> float:
    return _low(group, heights, distance) + len(group) * distance


def _place(
    point: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[Box],
    texts: Sequence[Box],
    points: Sequence[tuple[float, float]],
    bounds: Box,
) -> Place | None:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            box = _box(point, size, direction, distance)
            is_far = distance > _DISTANCES[1]
            if not box.inside(bounds) or any(box.meets(other) for other in taken):
                continue
            if not is_far or _is_clear(point, box, [other for other in points if other != point], texts):
                return Place(box, is_far)
    return None


def _is_clear(
    point: tuple[float, float], box: Box, others: Sequence[tuple[float, float]], texts: Sequence[Box]
) -> bool:
    """Whether the line from a point to its text touches no other point and no other text."""
    (x, y), (end_x, end_y) = point, ((box.left + box.right) / 2, (box.low + box.high) / 2)
    for step in range(1, _STEPS):
        at_x, at_y = x + step / _STEPS * (end_x - x), y + step / _STEPS * (end_y - y)
        spot = Box(at_x - 1, at_y - 1, at_x + 1, at_y + 1)
        if any(spot.meets(text) for text in texts):
            return False
        if any(math.dist((at_x, at_y), other) < _NEAR for other in others):
            return False
    return True


def _box(
    point: tuple[float, float], size: tuple[float, float], direction: tuple[int, int], distance: float
) -> Box:
    """The box of a text in this direction from the point. A text above or below is centred."""
    (x, y), (width, height), (right, up) = point, size, direction
    left = x - width / 2 + right * (distance + width / 2)
    low = y - height / 2 + up * (distance + height / 2)
    return Box(left, low, left + width, low + height)
