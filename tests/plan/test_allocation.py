"""Which weight gets how many bits: never more bytes than the budget, and best where that can be counted."""

from __future__ import annotations

import itertools
import random

import pytest

from builder.plan.allocation import ERROR, Allocation, Item, allocate, explained, from_text, items, nbytes

CHOICES = (4, 5, 6, 8)


def drawn(seed: int, count: int) -> list[Item]:
    draw = random.Random(seed)
    sizes = [64 * draw.randrange(1, 40) for _ in range(count)]
    return [Item(f"layers.{i}.w", size, draw.expovariate(1.0), 4) for i, size in enumerate(sizes)]


def spent(found: list[Item], bits: dict[str, int]) -> int:
    return sum(nbytes(item.elements, bits[item.path], 64) for item in found)


def cost(found: list[Item], bits: dict[str, int]) -> float:
    return sum(item.cost_at(bits[item.path]) for item in found)


@pytest.mark.parametrize("seed", range(20))
def test_it_never_exceeds_the_budget_and_is_near_the_best(seed: int) -> None:
    """Against every allocation of five weights. Greedy on convex hulls may miss what the last step leaves."""
    found = drawn(seed, 5)
    least = spent(found, {item.path: 4 for item in found})
    budget = int(least * (1 + random.Random(seed).random()))
    bits = allocate(found, CHOICES, 64, budget)
    assert spent(found, bits) <= budget
    every = (
        dict(zip((i.path for i in found), each, strict=True)) for each in itertools.product(CHOICES, repeat=5)
    )
    best = min(cost(found, each) for each in every if spent(found, each) <= budget)
    assert best <= cost(found, bits) <= 1.6 * best + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_more_bytes_never_cost_more(seed: int) -> None:
    found = drawn(seed, 40)
    least = spent(found, {item.path: 4 for item in found})
    costs = [cost(found, allocate(found, CHOICES, 64, int(least * part))) for part in (1, 1.1, 1.3, 1.6, 2.2)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(sum(item.cost for item in found))


def test_the_fewest_bits_for_all_where_nothing_more_fits() -> None:
    found = drawn(1, 6)
    assert set(allocate(found, CHOICES, 64, 0).values()) == {4}


def test_the_errors_fall_with_every_bit() -> None:
    bits = sorted(ERROR)
    assert all(ERROR[more] < ERROR[less] / 2 for less, more in itertools.pairwise(bits))


def test_a_measured_share_is_smoothed_by_its_kind() -> None:
    """A share below zero is noise, and no weight is taken to cost nothing."""
    measured = {"layers.0.v": 0.9, "layers.1.v": 0.1, "layers.2.v": -0.2, "head": 0.5, "layers.0.k": 0.0}
    sizes = dict.fromkeys(measured, 640)
    found = {item.path: item.cost for item in items(measured, sizes, dict.fromkeys(measured, 4))}
    mean = (0.9 + 0.1 - 0.2) / 3
    assert found["layers.0.v"] == pytest.approx((0.9 + mean) / 2)
    assert found["layers.2.v"] == pytest.approx((mean - 0.2) / 2)
    assert found["head"] == pytest.approx(0.5)
    assert 0 < found["layers.0.k"] < found["layers.2.v"]


def test_what_was_chosen_survives_its_text_and_is_explained() -> None:
    cost = {"layers.0.v": 0.0045, "head": 0.02, "x": 0.1}
    chosen = Allocation(4, {"layers.0.v": 6, "head": 5}, cost, 0.2, 0.1, 512, True)
    assert from_text(chosen.to_text()) == chosen
    assert explained(chosen) == (
        "on 512 tokens that nothing was rounded for, KL is 0.2 with 4 bits for every weight, and 0.1 with"
        " more bits for 2 of 3: these are used",
        "head: 5 bits, costs 0.02 of KL at 4",
        "layers.0.v: 6 bits, costs 0.0045 of KL at 4",
    )
    worse = Allocation(4, {"head": 5}, {"head": 0.02}, 0.1, 0.2, 512, False)
    assert worse.chosen == {}
    assert len(explained(worse)) == 1
