"""The search alone; then through doit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable

import pytest

from builder.evaluate.threshold import answer, family_of, search
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
