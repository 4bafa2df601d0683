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
) -> list[Place | None]:
    """A place for the text of each point, or None where there is no place. Earlier points choose first.

    No text covers an obstacle, another text or the line to a far text. No such line touches another point or
    text. If possible, no text covers one of `lines`.
    """
    texts: list[Box] = []
    leads: list[Box] = []
    found = []
    for point, size in zip(points, sizes, strict=True):
        others = [other for other in points if other != point]
        taken = [*obstacles, *texts, *leads]
        place = _place(point, size, [*taken, *lines], texts, others, bounds)
        place = place or _place(point, size, taken, texts, others, bounds)
        found.append(place)
        if place is not None:
            texts.append(place.box)
            leads += _lead(point, place.box) if place.is_far else []
    return found


def apart(
    heights: Sequence[float], distance: float, ends: tuple[float, float] = (-math.inf, math.inf)
) -> list[float]:
    """Heights at least `distance` from each other, near the given heights and in the same order.

    Each text is `distance` high and stays between `ends`, if there is room for all of them.
    """

    def low(group: Sequence[int]) -> float:
        """The lower end of a group of texts around the middle of their heights."""
        size = len(group) * distance
        middle = sum(heights[index] for index in group) / len(group)
        return min(max(middle - size / 2, ends[0]), ends[1] - size)

    order = sorted(range(len(heights)), key=lambda index: heights[index])
    found = [0.0] * len(heights)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and low(groups[-1]) < low(groups[-2]) + len(groups[-2]) * distance:
            last = groups.pop()
            groups[-1] += last
    for group in groups:
        for place, index in enumerate(group):
            found[index] = low(group) + (place + 0.5) * distance
    return found


def _place(
    point: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[Box],
    texts: Sequence[Box],
    others: Sequence[tuple[float, float]],
    bounds: Box,
) -> Place | None:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            box = _box(point, size, direction, distance)
            is_far = distance > _DISTANCES[1] or _is_nearer(others, point, box)
            if not box.inside(bounds) or any(box.meets(other) for other in taken):
                continue
            if not is_far or _is_clear(point, box, others, texts):
                return Place(box, is_far)
    return None


def _is_nearer(others: Sequence[tuple[float, float]], point: tuple[float, float], box: Box) -> bool:
    """Whether another point is nearer to a text than the point of the text."""
    middle = ((box.left + box.right) / 2, (box.low + box.high) / 2)
    return any(math.dist(middle, other) < math.dist(middle, point) for other in others)


def _is_clear(
    point: tuple[float, float], box: Box, others: Sequence[tuple[float, float]], texts: Sequence[Box]
) -> bool:
    """Whether the line from a point to its text touches no other point and no other text."""
    spots = _lead(point, box)
    return not any(
        any(spot.meets(text) for text in texts)
        or any(math.dist((spot.left, spot.low), other) < _NEAR for other in others)
        for spot in spots
    )


def _lead(point: tuple[float, float], box: Box) -> list[Box]:
    """Small boxes along the line from a point to its text."""
    (x, y), (end_x, end_y) = point, ((box.left + box.right) / 2, (box.low + box.high) / 2)
    shares = [step / _STEPS for step in range(1, _STEPS)]
    spots = [(x + share * (end_x - x), y + share * (end_y - y)) for share in shares]
    return [Box(at_x - 1, at_y - 1, at_x + 1, at_y + 1) for at_x, at_y in spots]


def _box(
    point: tuple[float, float], size: tuple[float, float], direction: tuple[int, int], distance: float
) -> Box:
    """The box of a text in this direction from the point. A text above or below is centred."""
    (x, y), (width, height), (right, up) = point, size, direction
    left = x - width / 2 + right * (distance + width / 2)
    low = y - height / 2 + up * (distance + height / 2)
    return Box(left, low, left + width, low + height)
