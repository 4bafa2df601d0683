"""Gives each weight its bits and its group size, so that the model costs least for its bytes. Pure.

What rounding a weight costs in one setting is measured (`builder.engine.rounding.sensitivity`). In other
settings it is scaled by the error of that setting, which is measured on some rows of the weight
(`builder.engine.rounding.errors`).

A greedy walk along the convex hulls gives the best allocation for a budget, up to the last step. It starts
with the fewest bytes for everything, and always takes the step that saves most for each byte.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.spec.types import Quantization

_LEAST = 0.1  # of the mean of its kind: a cost below that is noise
_USUAL = 0.008  # the relative error of 4 bits in groups of 64, where a base has none in the measured setting
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Choice:
    """One setting that a weight may have: its bytes, and what it costs in nats."""

    how: Quantization
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Item:
    """One weight and its choices, from the fewest bytes to the most."""

    path: str
    choices: tuple[Choice, ...]


def smoothed(cost: Mapping[str, float], elements: Mapping[str, int], own: float) -> dict[str, float]:
    """Costs with less noise: `own` says how much of each measured one counts, the rest is its kind's mean.

    A kind is all paths that differ only in numbers. Both are taken for their size, and multiplied as powers.
    Of a kind's mean a tenth is the least.
    """
    kinds: dict[str, list[str]] = {}
    for path in elements:
        kinds.setdefault(_NUMBER.sub(".#.", f".{path}."), []).append(path)
    total = sum(max(0.0, value) for value in cost.values()) / max(1, sum(elements.values()))
    found = {}
    for paths in kinds.values():
        size = sum(elements[path] for path in paths)
        mean = max(sum(cost.get(path, 0.0) for path in paths) / size, _LEAST * total)
        for path in paths:
            expected = mean * elements[path]
            measured = max(cost.get(path, 0.0), _LEAST * expected)
            found[path] = measured**own * expected ** (1 - own)
    return found


def steeper(errors: Mapping[Quantization, float], at: float, power: float) -> dict[Quantization, float]:
    """Errors as they count: those above `at`, that of the measured setting, with a power of the ratio."""
    return {each: at * (error / at) ** power if error > at > 0 else error for each, error in errors.items()}


def item(path: str, elements: int, cost: float, error: float, errors: Mapping[Quantization, float]) -> Item:
    """A weight that costs `cost` in a setting whose error is `error`. errors: of all that it may have."""
    scale = cost / (error or _USUAL)
    found = [Choice(how, nbytes(elements, how), scale * each) for how, each in errors.items()]
    return Item(path, tuple(sorted(found, key=lambda each: (each.nbytes, each.cost, each.how.group_size))))


def allocate(items: Sequence[Item], budget: int) -> dict[str, Quantization]:
    """Path -> setting, of at most `budget` bytes for codes, scales and biases, at least cost.

    With the fewest bytes for everything it may still be above the budget.
    """
    by_path = {each.path: each for each in items}
    chosen = {each.path: each.choices[0] for each in items}
    left = budget - sum(choice.nbytes for choice in chosen.values())
    steps: list[tuple[float, str, int]] = []

    def offer(path: str) -> None:
        """The best step from what is chosen: on the convex hull it saves most for each byte."""
        now, best, at = chosen[path], 0.0, -1
        for number, other in enumerate(by_path[path].choices):
            if other.nbytes > now.nbytes and other.cost < now.cost:
                rate = (now.cost - other.cost) / (other.nbytes - now.nbytes)
                if rate >= best:
                    best, at = rate, number
        if at >= 0:
            heapq.heappush(steps, (-best, path, at))

    for each in items:
        offer(each.path)
    while steps:
        _, path, at = heapq.heappop(steps)
        now, to = chosen[path], by_path[path].choices[at]
        if to.nbytes - now.nbytes > left:  # a smaller step may still fit
            fits = [
                each
                for each in by_path[path].choices
                if now.nbytes < each.nbytes <= now.nbytes + left and each.cost < now.cost
            ]
            if not fits:
                continue
            to = min(fits, key=lambda each: (each.cost, each.nbytes))
        left -= to.nbytes - now.nbytes
        chosen[path] = to
        offer(path)
    return {path: choice.how for path, choice in chosen.items()}


def nbytes(elements: int, how: Quantization) -> int:
    """Bytes of the codes, and of a 16-bit scale and a 16-bit bias for each group."""
    return (elements * how.bits + elements // how.group_size * 32) // 8
