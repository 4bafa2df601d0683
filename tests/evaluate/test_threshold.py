"""The search alone; then through doit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.evaluate.threshold import Search, answer, family_of, search
from builder.spec.types import Quantization, Variant
from tests.conftest import Sandbox
from tests.evaluate.test_run import project

ORDER = ["2", "3", "4", "5", "6", "8"]


@pytest.mark.parametrize("least", range(7))
def test_it_finds_the_smallest_with_few_questions(least: int) -> None:
    asked: list[str] = []

    def passes(name: str) -> bool:
        asked.append(name)
        return ORDER.index(name) >= least

    found = search(ORDER, passes, {})
    assert found.found == (ORDER[least] if least < 6 else None)
    assert len(asked) == len(set(asked)) <= 3
    assert not found.exceptions


def test_what_is_known_is_not_asked() -> None:
    found = search(ORDER, lambda name: pytest.fail(name), {name: name >= "5" for name in ORDER})
    assert found.found == "5"


def test_what_is_known_narrows_the_search() -> None:
    """With 4 failing and 5 passing, nothing is left to ask."""
    found = search(ORDER, lambda name: pytest.fail(name), {"4": False, "5": True})
    assert found.found == "5"
    asked: list[str] = []

    def passes(name: str) -> bool:
        asked.append(name)
        return name >= "5"

    assert search(ORDER, passes, {"3": False, "6": True}).found == "5"
    assert set(asked) <= {"4", "5"}


def test_other_families_need_not_be_asked_above_what_is_known_to_pass() -> None:
    order = ["2", "m3", "3", "m4", "4", "5", "m6", "6"]
    known = {"m3": False, "m4": True, "3": False}
    found = search(order, lambda name: pytest.fail(name), known, lambda name: name[0] == "m")
    assert (found.found, found.unasked) == ("m4", ("2",))


@pytest.mark.parametrize("n", range(1, 6))
def test_only_what_is_open_is_asked(n: int) -> None:
    """For one family and everything known before: as many questions as it takes to halve what is open."""
    for least in range(n + 1):
        for known in subsets(n):
            given = {at: at >= least for at in known}
            found = searched([at >= least for at in range(n)], given, [0] * n)
            low = max((at + 1 for at in known if at < least), default=0)
            high = min((at for at in known if at >= least), default=n)
            assert found.found == (str(least) if least < n else None)
            assert len(found.passes) - len(known) <= (high - low).bit_length()


def test_it_says_when_size_does_not_order() -> None:
    truth = {"2": False, "3": True, "4": False, "5": True, "6": True, "8": True}
    found = search(ORDER, truth.__getitem__, {"3": True, "4": False})
    assert found.found == "3"
    assert found.exceptions == (("3", "4"),)


def test_it_says_what_it_did_not_look_at() -> None:
    """2 passes too, which nobody asked."""
    truth = {"2": True, "3": False, "4": False, "5": True, "6": True, "8": True}
    found = search(ORDER, truth.__getitem__, {})
    assert (found.found, found.unasked) == ("5", ("2",))
    assert answer(found) == "5 is the smallest found; smaller ones not measured: 2"
    assert answer(search(ORDER, truth.__getitem__, truth)) == "2 is the smallest that passes"


def test_other_families_are_asked_for_smaller_ones() -> None:
    order = ["2", "m3", "3", "m4", "4", "5", "m6", "16"]
    truth = {"2": False, "m3": False, "3": False, "m4": True, "4": False, "5": True, "m6": True, "16": True}
    asked: list[str] = []

    def passes(name: str) -> bool:
        asked.append(name)
        return truth[name]

    found = search(order, passes, {}, lambda name: name[0] if name in ("m3", "m4", "m6", "16") else "")
    assert found.found == "m4"
    assert found.unasked == ("2", "3")
    assert not {"m6", "16"} & set(asked)  # larger than what was found
    assert found.exceptions == (("m4", "4"),)
    none = search(order, lambda name: False, {}, lambda name: name[0])
    assert none.found is None
    assert "16" in none.passes


# -- every case of a few members against brute force ---------------------------------------------------------


def searched(truth: Sequence[bool], known: Mapping[int, bool], families: Sequence[int]) -> Search:
    """A search over members "0", "1", ..., small to large; whatever is asked is asked once, and not known."""
    asked: list[str] = []

    def passes(name: str) -> bool:
        asked.append(name)
        return truth[int(name)]

    order = [str(n) for n in range(len(truth))]
    given = {str(n): passed for n, passed in known.items()}
    found = search(order, passes, given, lambda name: families[int(name)])
    assert len(asked) == len(set(asked))
    assert not set(asked) & set(given)
    assert dict(found.passes) == {**given, **{name: truth[int(name)] for name in asked}}
    return found


def smallest(truth: Sequence[bool]) -> str | None:
    return next((str(n) for n, passed in enumerate(truth) if passed), None)


def partitions(n: int) -> Iterator[tuple[int, ...]]:
    """Every way to put n members into families."""
    if n == 0:
        yield ()
        return
    for rest in partitions(n - 1):
        for family in range(max(rest, default=-1) + 2):
            yield (*rest, family)


def monotone(families: Sequence[int]) -> Iterator[tuple[bool, ...]]:
    """Every truth in which, within a family, whatever passes is passed by all that is larger."""
    sizes = [families.count(family) for family in range(max(families, default=-1) + 1)]
    for least in product(*(range(size + 1) for size in sizes)):
        rank = dict.fromkeys(range(len(sizes)), 0)
        truth = []
        for family in families:
            truth.append(rank[family] >= least[family])
            rank[family] += 1
        yield tuple(truth)


def subsets(n: int) -> Iterator[tuple[int, ...]]:
    for chosen in product((False, True), repeat=n):
        yield tuple(at for at in range(n) if chosen[at])


@pytest.mark.parametrize("n", range(7))
def test_the_smallest_is_found_where_size_orders_each_family(n: int) -> None:
    """Also with anything known before."""
    cases = 0
    for families in partitions(n):
        for truth in monotone(families):
            for known in subsets(n) if n < 5 else ((),):
                found = searched(truth, {at: truth[at] for at in known}, families)
                assert found.found == smallest(truth), (families, truth, known)
                assert not {name for name in found.unasked if truth[int(name)]}
                cases += 1
    assert cases == (1, 4, 28, 240, 2432, 878, 5653)[n]


@pytest.mark.parametrize("n", range(1, 7))
def test_one_family_is_bisected(n: int) -> None:
    """As many questions as it takes to halve n + 1 answers down to one."""
    for least in range(n + 1):
        found = searched([at >= least for at in range(n)], {}, [0] * n)
        assert found.found == (str(least) if least < n else None)
        assert len(found.passes) <= n.bit_length()


def check_what_is_said(truth: Sequence[bool], found: Search) -> None:
    """Right in any case, also where size orders nothing."""
    passing = [name for name in found.order if found.passes.get(name)]
    assert found.found == (passing[0] if passing else None)
    smaller = found.order[: found.order.index(found.found)] if found.found else ()
    assert found.unasked == tuple(name for name in smaller if name not in found.passes)
    assert set(found.exceptions) == {
        (small, large)
        for small in found.passes
        for large in found.passes
        if int(small) < int(large) and truth[int(small)] and not truth[int(large)]
    }


@pytest.mark.parametrize("n", range(7))
def test_what_is_found_is_the_smallest_of_those_that_are_known_to_pass(n: int) -> None:
    """For every truth at all of one family, with everything known before that can be."""
    for truth in product((False, True), repeat=n):
        for known in subsets(n):
            found = searched(truth, {at: truth[at] for at in known}, [0] * n)
            check_what_is_said(truth, found)
            if found.found is None:
                assert not any(found.passes.values())
                assert n == 0 or str(n - 1) in found.passes  # the largest was asked
            contradicted = any(truth[a] and not truth[b] for a in known for b in known if a < b)
            if contradicted:
                assert found.found == smallest(truth)  # asked from the small end


@given(st.data())
def test_with_families_too(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 8))
    truth = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    families = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    known = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    found = searched(truth, {at: truth[at] for at in known}, families)
    check_what_is_said(truth, found)


def test_a_family_differs_in_bits_alone() -> None:
    def affine(bits: int, group: int = 64) -> Variant:
        return Variant("v", quantization=Quantization(bits, group))

    assert family_of(affine(4)) == family_of(affine(5)) != family_of(affine(4, 32))
    recipe = Variant("v", recipe="mixed_4_6")
    assert len({family_of(affine(4)), family_of(recipe), family_of(Variant("v", dtype="float16"))}) == 3


def test_threshold_builds_only_what_it_needs(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    box.edit('["routing", "calls", "ppl", "fidelity", "said", "own"]', '["fidelity"]')
    box.edit('"routing.accuracy" = ">= 0"', '"fidelity.kl" = "<= 100"')
    found = box.doit("threshold:m")
    assert found.code == 0, found.text
    assert "m_4bit is the smallest that passes" in found.out
    assert not box.view("m_f16").exists()
    box.edit("<= 100", "<= -1")
    none = box.doit("threshold:m")
    assert none.code == 1
    assert "no target meets the requirements. m_f16, the largest, misses fidelity.kl <= -1" in none.text
    assert not box.view("m_f16").exists()  # measured all the same
    status = json.loads(box.doit("status", "--json").out)["targets"]
    code = "import json; from dataclasses import asdict; from builder import Project\n"
    code += "print(json.dumps([asdict(row) for row in Project().status()]))"
    assert json.loads(box.run(sys.executable, "-c", code).out) == status  # Python says the same
    assert {row["target"]: row["misses"] for row in status if row["score"] is not None}["m_4bit"]


def test_a_model_of_which_nothing_can_be_made_says_why(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    assert box.doit("model:m_4bit").code == 0
    shutil.copytree(box.view("m_4bit"), box.root / "packed")
    box.edit('path = "base"', 'path = "packed"')
    ran = box.doit("threshold:m")
    assert ran.code == 2
    assert '[model.m] adapter "tuned" would be rounded away: base "tiny" is quantized already.' in ran.text
    assert "Traceback" not in ran.text
