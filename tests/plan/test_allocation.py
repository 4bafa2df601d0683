"""Which weight gets how many bits: never more bytes than the budget, and best where that can be counted."""

from __future__ import annotations

import itertools
import random

import pytest

from builder.plan.allocation import Allocation, explained, from_text
from builder.plan.solver import Item, allocate, item, nbytes, smoothed, steeper
from builder.spec.types import Quantization

FOUR = Quantization(4, 64)
SETTINGS = [Quantization(bits, 64) for bits in (3, 4, 5, 6, 8)]
FINE = [Quantization(4, 32), Quantization(5, 128)]
ERROR = dict(zip(SETTINGS, (4.5, 1.0, 0.26, 0.064, 0.004), strict=True))


def drawn(seed: int, count: int, settings: list[Quantization] = SETTINGS) -> list[Item]:
    draw = random.Random(seed)
    sizes = [128 * draw.randrange(1, 20) for _ in range(count)]
    errors = {how: ERROR.get(how, 0.4) for how in settings}
    return [item(f"layers.{i}.w", size, draw.expovariate(1.0), 1.0, errors) for i, size in enumerate(sizes)]


def totals(found: list[Item], chosen: dict[str, Quantization]) -> tuple[int, float]:
    """Bytes and costs."""
    every = [choice for each in found for choice in each.choices if choice.how == chosen[each.path]]
    return sum(choice.nbytes for choice in every), sum(choice.cost for choice in every)


def same(found: list[Item], how: Quantization) -> dict[str, Quantization]:
    return {each.path: how for each in found}


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS + FINE])
@pytest.mark.parametrize("seed", range(10))
def test_it_never_exceeds_the_budget_and_is_near_the_best(seed: int, settings: list[Quantization]) -> None:
    """Against every allocation of four weights. Greedy on convex hulls may miss what the last step leaves."""
    found = drawn(seed, 4, settings)
    budget = int(totals(found, same(found, FOUR))[0] * (1 + random.Random(seed).random()))
    chosen = allocate(found, budget)
    spent, cost = totals(found, chosen)
    assert spent <= budget
    every = (
        dict(zip((each.path for each in found), hows, strict=True))
        for hows in itertools.product(settings, repeat=4)
    )
    best = min(price for size, price in (totals(found, each) for each in every) if size <= budget)
    assert best <= cost <= 1.6 * best + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_more_bytes_never_cost_more(seed: int) -> None:
    found = drawn(seed, 40)
    uniform, price = totals(found, same(found, FOUR))
    costs = [totals(found, allocate(found, int(uniform * part)))[1] for part in (1, 1.1, 1.3, 1.6, 2.2)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] <= price  # bits that are moved from one weight to another


def test_the_fewest_bytes_for_all_where_nothing_more_fits() -> None:
    found = drawn(1, 6)
    assert set(allocate(found, 0).values()) == {Quantization(3, 64)}


def test_a_setting_without_an_error_is_taken_before_more_bits() -> None:
    fine = Quantization(4, 32)
    errors = {**ERROR, fine: 0.0}
    found = [item("w", 6400, 1.0, 1.0, errors)]
    assert allocate(found, 10**9) == {"w": fine}
    assert nbytes(6400, fine) < nbytes(6400, Quantization(8, 64))


def test_a_measured_cost_is_smoothed_by_its_kind() -> None:
    """No weight is taken to cost nothing."""
    measured = {"layers.0.v": 0.8, "layers.1.v": 0.2, "layers.2.v": 0.0, "head": 0.5, "layers.0.k": 0.0}
    sizes = dict.fromkeys(measured, 640)
    mean = 1 / 3
    half = smoothed(measured, sizes, 0.5)
    assert half["layers.0.v"] == pytest.approx((0.8 * mean) ** 0.5)
    assert half["layers.2.v"] == pytest.approx((0.1 * mean * mean) ** 0.5)
    assert half["head"] == pytest.approx(0.5)
    assert 0 < half["layers.0.k"] < half["layers.2.v"]
    assert smoothed(measured, sizes, 0.0)["layers.0.v"] == pytest.approx(mean)
    assert smoothed(measured, sizes, 1.0)["layers.0.v"] == pytest.approx(0.8)


def test_large_errors_count_more_where_costs_are_steep() -> None:
    errors = {Quantization(2, 64): 0.16, Quantization(4, 64): 0.01, Quantization(5, 64): 0.0025}
    found = steeper(errors, 0.01, 1.5)
    assert found == {**errors, Quantization(2, 64): pytest.approx(0.64)}
    assert steeper(errors, 0.01, 1.0) == pytest.approx(errors)
    assert steeper(errors, 0.0, 1.5) == errors  # a base that has no error in the measured setting


def test_what_was_chosen_survives_its_text_and_is_explained() -> None:
    cost = {"layers.0.v": 0.0045, "head": 0.02, "x": 0.1}
    bits, groups = {"layers.0.v": 6, "head": 5}, {"head": 32}
    chosen = Allocation(4, bits, cost, 0.2, 0.1, 512, True, groups=groups, ways={"all": 0.1, "more": 0.15})
    assert from_text(chosen.to_text()) == chosen
    assert explained(chosen) == (
        "on 512 tokens that nothing was rounded for, KL is 0.2 with 4 bits for every weight, and 0.1 with"
        " own bits for 2 of 3: these are used",
        "head: 5 bits in groups of 32, costs 0.02 of KL at 4",
        "layers.0.v: 6 bits, costs 0.0045 of KL at 4",
    )
    worse = Allocation(4, {"head": 5}, {"head": 0.02}, 0.1, 0.2, 512, False)
    assert worse.chosen == {}
    assert len(explained(worse)) == 1
