"""A target that searches its size: real builds and measurements of the tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from builder.console.events import Event, Note
from builder.evaluate.run import measured
from builder.plan.allocation import Allocation
from builder.plan.goals import between
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.release.delivery import deliver
from tests.build.test_calibrated import build, fill
from tests.conftest import Sandbox
from tests.tiny import DECLARATION

Make = Callable[..., Sandbox]
SMALL = """
[suite.same]
kind = "fidelity"
data = "rows.jsonl"

[variant.small]
target = "smallest"
group_size = 32
calibration = "text.jsonl"
samples = 6
sequence_length = 32
"""
MODEL = 'suites = ["same"]\n\n[model.m.require]\n"same.kl" = "<= LIMIT"\n'
NAME = "m_small"


def declared(limit: str) -> str:
    head, _, tail = DECLARATION.partition('"5bit"]')
    return f'{head}"5bit", "small"]\n' + MODEL.replace("LIMIT", limit) + tail + SMALL


def questions(count: int = 12) -> str:
    rng = random.Random(7)
    rows = []
    for number in range(count):
        said = "".join(rng.choices("abcdefgh ", k=30))
        asked = [
            {"role": "user", "content": f"{number} {said}"},
            {"role": "assistant", "content": said[::-1]},
        ]
        rows.append(json.dumps({"messages": asked}))
    return "\n".join(rows)


def world(sandbox: Make, limit: str) -> Sandbox:
    box = fill(sandbox(declared(limit)))
    (box.root / "rows.jsonl").write_text(questions())
    return box


def planned(box: Sandbox) -> TargetPlan:
    plan = Project.load(box.toml).plan.targets[NAME]
    assert isinstance(plan, TargetPlan), plan
    return plan


def test_sizes_between_two_are_eighths() -> None:
    assert between(800, 1600) == (900, 1000, 1100, 1200, 1300, 1400, 1500)


def searched(box: Sandbox) -> list[str]:
    """Builds the target, and returns what was said of each size that was measured."""
    heard: list[Event] = []
    build(box, NAME, heard)
    return [each.text for each in heard if isinstance(each, Note) and "on one half" in each.text]


def chosen(box: Sandbox) -> Allocation:
    found = Project.load(box.toml).allocation(planned(box).chosen[0])
    assert found is not None
    return found


@pytest.mark.slow
def test_nothing_larger_than_the_fewest_bits_is_kept_where_they_pass(sandbox: Make) -> None:
    box = world(sandbox, "1")
    assert len(searched(box)) <= 3  # bisected
    found = chosen(box)
    assert (found.common, dict(found.bits), found.held) == (2, {}, 0)
    assert planned(box).quantization["model.layers.0.mlp.down_proj"].bits == 2
    assert sorted(path.name for path in box.view(NAME).parent.iterdir()) == [NAME]
    assert searched(box) == []  # it is known
    present = {path.stem for path in (box.root / "store/blobs").glob("*/*")}
    assert len(present) < 2 * len(planned(box).actions) + 12  # the larger ones are dropped
    tried = min(found.tried, key=lambda each: each.nbytes)
    why = box.doit("why", NAME).out
    assert f"{tried.bits_per_weight:.4g} bits per weight" in why
    assert "on 0 tokens" not in why


@pytest.mark.slow
def test_a_life_of_a_target_that_searches_its_size(sandbox: Make) -> None:
    box = world(sandbox, "5e-4")
    assert box.doit("base:tiny", "adapter:tuned").code == 0
    assert "its size is not searched yet" in box.doit("plan").text
    assert 3 <= len(searched(box)) <= 7
    found, plan = chosen(box), planned(box)
    passing = {each.nbytes for each in found.tried if each.passes}
    missing = {each.nbytes for each in found.tried if not each.passes}
    assert plan.size == min(passing)
    assert missing
    assert max(missing) < min(passing)
    # measured by the questions that took no part, and compared with others on the same ones
    ran = box.doit("eval:m_small", "eval:m_5bit")
    project = Project.load(box.toml)
    own = measured(project, planned(box))["same"]
    other = measured(project, project.plan.targets["m_5bit"])["same"]  # type: ignore[arg-type]
    assert own.figures["kl"].clusters == len(own.rows["kl"]) == len(own.asked) == 6
    assert len(other.rows["kl"]) == 12
    assert not other.asked
    assert ("misses" in ran.text) == (own.figures["kl"].value > 5e-4 or other.figures["kl"].value > 5e-4)
    asked = project.spec.search_suites(project.spec.target(NAME))
    assert asked[0].part == "search"
    report = json.loads(box.doit("report", "--json").out)
    pair = [each for each in report["models"][0]["compared"] if NAME in (each["first"], each["second"])]
    assert {each["difference"]["n"] for each in pair} == {6}
    assert box.doit("report").code == 0
    assert "measured by the other half: small" in (box.root / "store/report/index.html").read_text()
    # what is required is part of the question, what was measured is not measured again
    box.edit('"<= 5e-4"', '"<= 6e-4"')
    assert planned_reason(box) == "its size is not searched yet"
    heard: list[Event] = []
    build(box, NAME, heard)
    again = [each.text for each in heard if isinstance(each, Note)]
    known = [text for text in again if "on one half" in text]
    assert len([text for text in again if text.startswith("measuring")]) < len(known)
    box.edit('"<= 6e-4"', '"<= 5e-4"')
    assert planned(box).key == plan.key
    assert box.doit("gc", "--grace", "0", "--yes").code == 0
    assert planned(box).key == plan.key
    assert box.doit("verify").code == 0


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(sandbox: Make) -> None:
    box = world(sandbox, "5e-4")

    class Stopped(Exception):
        pass

    seen: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, Note) and "on one half" in event.text:
            seen.append(event.text)
            if len(seen) == 2:
                raise Stopped

    project = Project.load(box.toml)
    with pytest.raises(Stopped):
        deliver(project, NAME, {NAME}, (), stop)
    assert not box.view(NAME).exists()
    heard: list[Event] = []
    build(box, NAME, heard)
    notes = [each.text for each in heard if isinstance(each, Note)]
    assert [text for text in notes if "on one half" in text][:2] == seen
    assert len([text for text in notes if text.startswith("measuring m_small")]) <= len(chosen(box).tried) - 2
    assert sorted(path.name for path in box.view(NAME).parent.iterdir()) == [NAME]


@pytest.mark.slow
def test_no_size_passes(sandbox: Make) -> None:
    box = world(sandbox, "0")
    ran = box.doit("model:m_small")
    assert ran.code == 1
    assert (
        "m_small: no size meets the requirements. With 8 bits for every weight it misses same.kl" in ran.err
    )
    assert "Traceback" not in ran.err
    assert not box.view(NAME).exists()
    assert not box.view(f"{NAME}.search").exists()


def test_questions_that_are_not_there_are_named(sandbox: Make) -> None:
    box = world(sandbox, "1")
    (box.root / "rows.jsonl").unlink()
    ran = box.doit("model:m_small")
    assert ran.code == 2
    assert "suite same" in ran.err
    assert "rows.jsonl" in ran.err
    assert "Traceback" not in ran.err


def planned_reason(box: Sandbox) -> str:
    plan = Project.load(box.toml).plan.targets[NAME]
    assert isinstance(plan, Unresolved)
    return plan.reason
