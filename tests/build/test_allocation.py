"""Targets that ask for a size: real builds on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from builder.console.events import Event, Note
from builder.plan.types import TargetPlan
from builder.project.project import Project
from tests.build.test_calibrated import build, fill
from tests.conftest import Sandbox
from tests.tiny import DECLARATION

Make = Callable[..., Sandbox]
SMALL = """
[variant.small]
target = "5.5bpw"
group_size = 32
calibration = "text.jsonl"
samples = 6
sequence_length = 32
"""


@pytest.fixture
def project(sandbox: Make) -> Sandbox:
    return fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "small"]') + SMALL))


def planned(box: Sandbox) -> TargetPlan:
    plan = Project.load(box.toml).plan.targets["m_small"]
    assert isinstance(plan, TargetPlan), plan
    return plan


def test_a_target_is_never_larger_than_it_asks_for(project: Sandbox) -> None:
    heard: list[Event] = []
    made = build(project, "m_small", heard)
    plan = planned(project)
    assert plan.bits_per_weight <= 5.5
    view = project.view("m_small")
    config = json.loads((view / "config.json").read_text())["quantization"]
    own = {path: how["bits"] for path, how in config.items() if isinstance(how, dict)}
    groups = {path: how["group_size"] for path, how in config.items() if isinstance(how, dict)}
    chosen = Project.load(project.toml).allocation(plan.chosen[0])
    assert chosen is not None
    assert own == dict(chosen.chosen)
    assert chosen.kept == (chosen.divergence < chosen.uniform_divergence)
    assert chosen.divergence == min(chosen.ways.values())
    assert {path: size for path, size in groups.items() if size != config["group_size"]} == (
        dict(chosen.groups) if chosen.kept else {}
    )
    assert made == 0  # choosing has made every block
    assert any("is kept" in event.text for event in heard if isinstance(event, Note))
    from mlx_lm import load

    assert load(str(view))[0] is not None
    assert build(project, "m_small") == 0
    why = project.doit("why", "m_small")
    assert f"KL is {chosen.uniform_divergence:.4g} with {chosen.common} bits for every weight" in why.out
    assert why.code == 0


class Asked(Exception):
    """How many sequences costs are measured on."""


@pytest.mark.parametrize(("rounding", "used"), [("", 3), ('rounding = "nearest"\n', 5)])
def test_costs_take_half_of_the_text_where_it_is_rounded_for(
    project: Sandbox, rounding: str, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: object, plan: object, key: object, texts: list[object], *rest: object) -> None:
        raise Asked(len(texts))

    monkeypatch.setattr("builder.engine.rounding.text.COSTED", 3)
    monkeypatch.setattr("builder.build.allocation.measured_costs", ask)
    project.edit("samples = 6", f"{rounding}samples = 5")
    with pytest.raises(Asked, match=str(used)):
        build(project, "m_small")


def test_another_size_measures_nothing_again(project: Sandbox) -> None:
    build(project, "m_small")
    first = planned(project)
    project.edit('"5.5bpw"', '"5.8bpw"')
    assert planned_reason(project) == "the bits of its weights are not chosen yet"
    heard: list[Event] = []
    build(project, "m_small", heard)
    second = planned(project)
    assert second.chosen[0] != first.chosen[0]
    assert second.chosen[1] == first.chosen[1]
    assert not any(getattr(event, "part", "") == "gradient" for event in heard)
    assert second.bits_per_weight <= 5.8
    project.edit('"5.8bpw"', '"5.5bpw"')
    assert planned(project).key == first.key


def planned_reason(box: Sandbox) -> str:
    plan = Project.load(box.toml).plan.targets["m_small"]
    assert not isinstance(plan, TargetPlan)
    return plan.reason


def test_gc_keeps_what_was_chosen(project: Sandbox) -> None:
    build(project, "m_small")
    key = planned(project).key
    assert project.doit("gc", "--grace", "0", "--yes").code == 0
    assert planned(project).key == key
    assert project.doit("verify").code == 0


def test_a_size_that_nothing_meets_is_refused_with_numbers(project: Sandbox) -> None:
    project.edit('"5.5bpw"', '"2bpw"')
    ran = project.doit("model:m_small")
    assert ran.code == 2
    assert "target 2bpw is" in ran.err
    assert "With 2 bits for each weight m has" in ran.err
    assert "Traceback" not in ran.err


def test_a_calibrated_pass_is_planned_by_itself(project: Sandbox) -> None:
    """It reads the base once more, needs more memory, and nothing is known of its time."""
    project.edit('target = "5.5bpw"', "bits = 4")
    assert project.doit("base:tiny", "adapter:tuned").code == 0
    passes = json.loads(project.doit("plan", "--json").out)["passes"]
    own = [each for each in passes if each["targets"] == ["m_small"]]
    assert len(own) == 1
    others = [each for each in passes if each["targets"] != ["m_small"]]
    assert len(others) == 1
    assert "m_small" not in others[0]["targets"]
    assert own[0]["seconds"] is None
    assert own[0]["memory"] > others[0]["memory"]


def test_a_calibrated_pass_respects_the_memory_that_is_allowed(project: Sandbox) -> None:
    project.edit('target = "5.5bpw"', "bits = 4")
    project.toml.write_text(project.toml.read_text() + '\n[build]\nmemory = "450 MB"\n')
    ran = project.doit("model:m_small")
    assert ran.code == 2
    assert "[NoMemory]" in ran.err
    assert not project.view("m_small").exists()


def test_a_lock_says_that_bits_are_not_chosen(project: Sandbox) -> None:
    assert project.doit("base:tiny", "adapter:tuned").code == 0
    ran = project.builder("lock")
    assert ran.code == 2
    assert "m_small asks for a size, and the bits of its weights are not chosen yet" in ran.err
    assert "[BitsNotChosen]" in ran.err


def test_bits_alone_are_chosen_for_plain_rounding_and_share_its_blocks(project: Sandbox) -> None:
    project.edit('target = "5.5bpw"', 'target = "5.5bpw"\nrounding = "nearest"')
    heard: list[Event] = []
    build(project, "m_small", heard)
    plan = planned(project)
    assert plan.bits_per_weight <= 5.5
    chosen = Project.load(project.toml).allocation(plan.chosen[0])
    assert chosen is not None
    assert chosen.held > 0
    assert not any(getattr(event, "part", "") == "blocks" for event in heard)  # nothing is rounded for a text
    plain = "\n".join(
        ["[variant.plain]", f"bits = {chosen.common}", "group_size = 32", "[variant.plain.overrides]"]
        + [
            f'"{path}" = {{ bits = {bits}, group_size = {chosen.groups.get(path, 32)} }}'
            for path, bits in chosen.chosen.items()
        ]
    )
    project.toml.write_text(project.toml.read_text().replace('"small"]', '"small", "plain"]') + plain + "\n")
    other = Project.load(project.toml).plan.targets["m_plain"]
    assert isinstance(other, TargetPlan)
    assert [a.key for a in other.actions] == [a.key for a in plan.actions]
    assert build(project, "m_plain") == 0
    project.edit('rounding = "nearest"', 'rounding = "calibrated"')
    assert planned_reason(project) == "the bits of its weights are not chosen yet"
