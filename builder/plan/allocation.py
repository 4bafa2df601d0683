"""Gives each weight its bits, so that the model costs least for its bytes. Pure.

What rounding a weight costs at one width is measured (`builder.engine.rounding.sensitivity`). At other widths
it is scaled by ERROR: the error of a calibrated rounding, weighted by the inputs, against that of 4 bits in
groups of 64. It was measured on 21 weights of three layers, and differs between weights by 3 % (standard
deviation), so it needs no measurement of its own.

A greedy walk along the convex hulls gives the best allocation for a budget, up to the last step. It starts
with the fewest bits for everything, and always takes the step that saves most for each byte.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from builder.console.words import size_text

# bits -> error in groups of 64, relative to 4 bits
ERROR: Mapping[int, float] = {2: 19.1, 3: 4.47, 4: 1.0, 5: 0.258, 6: 0.0637, 8: 0.0038}
_OWN = 0.5  # how much of a weight's own share counts. The rest is the mean of its kind
_LEAST = 0.1  # of the mean of its kind: a share below that is noise
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Item:
    """One weight: its path, its number of elements, and what it costs in nats where it has `bits`."""

    path: str
    elements: int
    cost: float
    bits: int

    def cost_at(self, bits: int) -> float:
        """The cost with other bits, in nats."""
        return self.cost * ERROR[bits] / ERROR[self.bits]


@dataclass(frozen=True)
class Tried:
    """A size that a search measured: bits per weight, bytes of the tensors, and how it did (`said`)."""

    bits_per_weight: float
    nbytes: int
    passes: bool
    said: str


@dataclass(frozen=True)
class Allocation:
    """The bits of each weight of a target, and what was measured to choose them.

    `bits`: those with more than `common` bits. `cost`: nats for each token, by path, with `common` bits. The
    divergences, in nats for each token, are of `held` tokens that nothing was rounded for: of the target with
    `common` bits everywhere, and with `bits`. `kept` says which of both the target is. `held` is 0 where only
    the same bits everywhere were tried. `tried`: the sizes that a search measured, in its order.
    """

    common: int
    bits: Mapping[str, int]
    cost: Mapping[str, float]
    uniform_divergence: float
    divergence: float
    held: int
    kept: bool
    tried: tuple[Tried, ...] = ()

    @property
    def chosen(self) -> Mapping[str, int]:
        """The bits of weights that do not have the common ones."""
        return self.bits if self.kept else {}

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


def from_text(text: str) -> Allocation:
    """What `to_text` wrote. Raises ValueError, TypeError."""
    data = json.loads(text)
    tried = tuple(Tried(**each) for each in data.pop("tried", ()))
    return Allocation(**data, tried=tried)


def explained(found: Allocation) -> tuple[str, ...]:
    """Why each weight has its bits, one line each: those with more first, the dearest first."""
    searched = tuple(
        f"{each.bits_per_weight:.4g} bits per weight ({size_text(each.nbytes)}): {each.said}"
        for each in sorted(found.tried, key=lambda each: each.nbytes)
    )
    if not found.held:
        return searched
    both = (
        f"on {found.held} tokens that nothing was rounded for, KL is {found.uniform_divergence:.4g} with"
        f" {found.common} bits for every weight, and {found.divergence:.4g} with more bits for"
        f" {len(found.bits)} of {len(found.cost)}: {'these are' if found.kept else 'they are not'} used"
    )
    dearest = sorted(found.chosen, key=lambda path: (-found.cost.get(path, 0.0), path))
    return (
        *searched,
        both,
        *(f"{p}: {found.bits[p]} bits, costs {found.cost[p]:.2g} of KL at {found.common}" for p in dearest),
    )


def items(cost: Mapping[str, float], elements: Mapping[str, int], bits: Mapping[str, int]) -> list[Item]:
    """Items with costs that are smoothed: one measured share is noisy, and may be below zero.

    A kind is all paths that differ only in numbers. A weight counts with half its own share and half the mean
    of its kind for its size, and with at least a tenth of that mean.
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
            own = _OWN * cost.get(path, 0.0) + (1 - _OWN) * expected
            found[path] = max(own, _LEAST * expected)
    return [Item(path, elements[path], found[path], bits[path]) for path in elements]


def allocate(items: Sequence[Item], choices: Sequence[int], group_size: int, budget: int) -> dict[str, int]:
    """Path -> bits, of at most `budget` bytes for codes, scales and biases, at least cost.

    `choices`: the bits that may be used. With the fewest for everything it may still be above the budget.
    """
    least, *more = sorted(choices)
    chosen = {item.path: least for item in items}
    by_path = {item.path: item for item in items}
    left = budget - sum(nbytes(item.elements, least, group_size) for item in items)
    steps: list[tuple[float, str, int]] = []

    def offer(item: Item, bits: int) -> None:
        """The best step from `bits`: on the convex hull it saves most for each byte."""
        rates = [
            ((item.cost_at(bits) - item.cost_at(to)) / (item.elements * (to - bits)), to)
            for to in more
            if to > bits
        ]
        if rates:
            rate, to = max(rates)
            heapq.heappush(steps, (-rate, item.path, to))

    for item in items:
        offer(item, least)
    while steps:
        _, path, to = heapq.heappop(steps)
        item, now = by_path[path], chosen[path]
        price = nbytes(item.elements, to, group_size) - nbytes(item.elements, now, group_size)
        if price <= left:
            left -= price
            chosen[path] = to
            offer(item, to)
        else:  # a smaller step may still fit
            smaller = [bits for bits in more if now < bits < to]
            if smaller:
                heapq.heappush(steps, (0.0, path, smaller[-1]))
    return chosen


def nbytes(elements: int, bits: int, group_size: int) -> int:
    """Bytes of the codes, and of a 16-bit scale and a 16-bit bias for each group."""
    return (elements * bits + elements // group_size * 32) // 8
