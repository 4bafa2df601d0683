"""A target that searches its size and its share of experts: real builds of a tiny mixture."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builder.build.prepare import prepare_base
from builder.build.sharing import share
from builder.console.events import Event, Note, silent
from builder.errors import BuildError
from builder.plan.quantization import PlanError
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.why import why
from builder.release import shares, smallest
from builder.release.delivery import deliver
from builder.release.shares import search_share
from tests.build.test_calibrated import words
from tests.conftest import Sandbox
from tests.engine.test_routing import never
from tests.mixture import make_mixture
from tests.release.test_smallest import questions

Make = Callable[..., Sandbox]
DECLARATION = """
[base.mix]
path = "base"

[suite.same]
kind = "fidelity"
data = "rows.jsonl"

[variant.least]
target = "smallest"
rounding = "nearest"
group_size = 32
experts = [1.0, 0.75]
calibration = "text.jsonl"
samples = 6
sequence_length = 32

[model.m]
base = "mix"
variants = ["least"]
suites = ["same"]

[model.m.require]
"same.kl" = "<= 0.01"
"""


REMOTE = """
[remote.team]
url = "../remote"
push = "always"
"""


def filled(box: Sandbox) -> Sandbox:
    make_mixture(box.root / "base", never)
    (box.root / "text.jsonl").write_text(words(0))
    (box.root / "rows.jsonl").write_text(questions())
    return box


def deliver_least(box: Sandbox) -> list[str]:
    heard: list[Event] = []
    loaded = Project.load(box.toml)
    prepare_base(loaded, loaded.spec.bases["mix"], heard.append)
    deliver(loaded, "m_least", {"m_least"}, (), heard.append)
    return [event.text for event in heard if isinstance(event, Note)]


@pytest.mark.slow
def test_experts_that_are_never_chosen_are_left_out_by_a_search(
    sandbox: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = smallest.rungs
    monkeypatch.setattr(smallest, "between", lambda small, large: ())
    monkeypatch.setattr(  # 4 or 8 bits, and nothing between
        smallest, "rungs", lambda target, base: {b: n for b, n in every(target, base).items() if b in (4, 8)}
    )
    box = filled(sandbox(DECLARATION + REMOTE))
    assert box.builder("remote", "init").code == 0
    said = deliver_least(box)
    assert any("the smallest size with 0.75 of the experts" in line for line in said)
    project = Project.load(box.toml)
    plan = project.plan.targets["m_least"]
    assert isinstance(plan, TargetPlan)
    assert plan.base.pruned is not None
    assert plan.base.pruned.keep == 6
    lines = why(project, "m_least").bits
    assert lines[0].startswith("with all experts ")
    assert lines[1].startswith("with 0.75 of the experts ")
    assert lines[1].endswith(": chosen")
    assert lines[2].startswith("keeps 6 of 8 experts in each layer by REAP")
    assert not any(
        "the smallest size with" in line for line in deliver_least(box)
    )  # nothing is searched again
    share(project, [plan], "always", silent)
    ben = box.clone("ben")
    told = deliver_least(ben)
    assert any("pulled" in line for line in told)
    assert not any("the smallest size with" in line or "are measured with" in line for line in told)
    assert Project.load(ben.toml).plan.targets["m_least"].key == plan.key
    assert box.doit("gc", "--grace", "0", "--yes").code == 0
    assert project.plan.targets["m_least"] == Project.load(box.toml).plan.targets["m_least"]
    box.edit("[1.0, 0.75]", "[1.0, 0.75, 0.5]")
    assert not isinstance(Project.load(box.toml).plan.targets["m_least"], TargetPlan)


@pytest.mark.slow
def test_a_share_that_the_router_cannot_have_is_refused_before_a_size_is_searched(
    sandbox: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[object] = []
    monkeypatch.setattr(shares, "search_size", lambda *asked: searched.append(asked))
    box = filled(sandbox(DECLARATION.replace("[1.0, 0.75]", "[1.0, 0.1]")))
    with pytest.raises(PlanError, match=r"experts = 0.1 keeps 1 of 8 experts in each layer, but the router"):
        deliver_least(box)
    assert not searched


def test_questions_that_are_not_there_are_named(sandbox: Make) -> None:
    box = filled(sandbox(DECLARATION))
    (box.root / "rows.jsonl").unlink()
    project = Project.load(box.toml)
    prepare_base(project, project.spec.bases["mix"], silent)
    with pytest.raises(BuildError, match="rows.jsonl") as caught:
        search_share(project, project.spec.target("m_least"), silent)
    assert "\n" not in caught.value.message
