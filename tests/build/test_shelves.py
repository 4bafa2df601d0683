"""Where hidden states are kept: limits by what a pass takes, and the same figures from the disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builder.build import calibrated, experts, importance, measuring, shelves
from builder.build.prepare import prepare_target
from builder.console.events import silent
from builder.engine.rounding import walk
from builder.engine.rounding.shelf import Shelf
from builder.project.peaks import rounding_memory, walking_memory
from builder.project.project import Project
from builder.weights.experts import Routing
from tests.build.test_allocation import SMALL
from tests.build.test_calibrated import build, fill
from tests.build.test_experts import DECLARATION as EXPERTS
from tests.build.test_experts import build as build_mixture
from tests.build.test_experts import planned, words
from tests.conftest import Sandbox
from tests.mixture import make_adapter, make_mixture
from tests.tiny import DECLARATION

Make = Callable[[str], Sandbox]
GIB = 1 << 30
NEAREST = SMALL.replace("[variant.small]", '[variant.small]\nrounding = "nearest"')


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Shelf]:
    """Every shelf that a test makes."""
    found: list[Shelf] = []

    def shelf(project: Project, taken: int) -> Shelf:
        found.append(shelves.shelf(project, taken))
        return found[-1]

    for module in (calibrated, experts, importance, measuring):
        monkeypatch.setattr(module, "shelf", shelf)
    monkeypatch.setattr(shelves, "memory_for", lambda _: GIB)
    monkeypatch.setattr(walk, "TOKENS", 64)
    return found


def test_bits_for_plain_rounding_leave_room_for_the_weights(sandbox: Make, made: list[Shelf]) -> None:
    """They are measured on two shelves: one for the costs, and one for all that is compared."""
    box = fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "small"]') + NEAREST))
    build(box, "m_small")
    plan = planned(box, "m_small")
    assert rounding_memory(plan) == 0
    assert [each.limit for each in made] == [GIB - walking_memory(plan)] * 2
    assert all(each.limit < GIB - (400 << 20) for each in made)
    chosen = Project.load(box.toml).allocation(plan.chosen[0])
    assert chosen is not None
    assert len(chosen.ways) > 1


def test_figures_from_the_disk_are_the_same(
    sandbox: Make, made: list[Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "small"]') + NEAREST))
    other = box.clone("other")
    build(box, "m_small")
    monkeypatch.setattr(shelves, "memory_for", lambda _: 0)
    build(other, "m_small")
    ours, theirs = (
        Project.load(each.toml).allocation(planned(each, "m_small").chosen[0]) for each in (box, other)
    )
    assert ours == theirs
    assert [each.stored > 0 for each in made] == [False, False, True, True]


def test_experts_are_measured_with_states_on_the_disk(
    sandbox: Make, made: list[Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = sandbox(EXPERTS)
    make_mixture(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "text.jsonl").write_text(words(0))
    other = box.clone("other")
    build_mixture(box, "m_small")
    monkeypatch.setattr(shelves, "memory_for", lambda _: 0)
    build_mixture(other, "m_small")
    ours, theirs = (routing(each) for each in (box, other))
    assert ours == theirs
    assert ours.tenth is not None
    assert [each.stored > 0 for each in made] == [False, True]
    assert 0 < made[0].limit < GIB - (400 << 20)


def routing(box: Sandbox) -> Routing:
    pruned = planned(box, "m_small").base.pruned
    assert pruned is not None
    found = Project.load(box.toml).routing(pruned.measured)
    assert found is not None
    return found


def test_an_importance_matrix_leaves_room_for_the_weights(sandbox: Make, made: list[Shelf]) -> None:
    pytest.importorskip("gguf")
    weighed = (
        '\n[variant.k]\ngguf = "Q4_K_M"\ncalibration = "text.jsonl"\nsamples = 6\nsequence_length = 32\n'
    )
    box = fill(sandbox(DECLARATION.replace('"5bit"]', '"5bit", "k"]') + weighed))
    project = Project.load(box.toml)
    plan = prepare_target(project, project.spec.target("m_k"), silent)
    assert importance.importance_of(project, plan, silent).size > 0
    assert [each.limit for each in made] == [GIB - walking_memory(plan)]
