"""Targets that leave experts out: real builds on a tiny mixture of experts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from builder.build.experts import measure_experts
from builder.build.prepare import (
    ExpertsNotMeasured,
    prepare_adapter,
    prepare_base,
    prepare_calibration,
    prepare_target,
)
from builder.console.events import Event, Learning, Note
from builder.engine.expert_places import NotPrunable
from builder.plan.quantization import PlanError
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.why import why
from builder.release.delivery import deliver
from tests.build.test_calibrated import words
from tests.conftest import Sandbox
from tests.mixture import make_adapter, make_mixture
from tests.tiny import make_base

Make = Callable[..., Sandbox]
TEXT = 'calibration = "text.jsonl"\nsamples = 8\nsequence_length = 32\n'
DECLARATION = f"""\
[base.mix]
path = "base"

[adapter.tuned]
base = "mix"
path = "adapter"

[variant.f16]

[variant.4bit]
bits = 4
group_size = 32

[variant.small]
bits = 4
group_size = 32
experts = 0.75
{TEXT}
[variant.half]
experts = 0.5
criterion = "frequency"
{TEXT}
[variant.round]
bits = 4
group_size = 32
experts = 0.75
rounding = "calibrated"
{TEXT}
[variant.sized]
target = "5.2bpw"
group_size = 32
experts = 0.75
{TEXT}
[model.m]
adapter = "tuned"
variants = ["f16", "4bit", "small", "half", "round", "sized"]
"""


@pytest.fixture
def project(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_mixture(box.root / "base")
    make_adapter(box.root / "adapter")
    (box.root / "text.jsonl").write_text(words(0))
    return box


def build(box: Sandbox, name: str, *also: str, heard: list[Event] | None = None) -> dict[str, int]:
    """Builds targets in this process: how many blocks were made of each."""
    heard = [] if heard is None else heard
    loaded = Project.load(box.toml)
    prepare_base(loaded, loaded.spec.bases["mix"], heard.append)
    prepare_adapter(loaded, loaded.spec.adapters["tuned"], heard.append)
    return {made.name: made.made for made in deliver(loaded, name, {name, *also}, (), heard.append)}


def planned(box: Sandbox, name: str) -> TargetPlan:
    plan = Project.load(box.toml).plan.targets[name]
    assert isinstance(plan, TargetPlan), plan
    return plan


def tensors(box: Sandbox, name: str) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(box.view(name).glob("*.safetensors")):
        arrays: Any = mx.load(str(file))
        found |= arrays
    return found


def config(box: Sandbox, name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((box.view(name) / "config.json").read_text())
    return made


def assert_cut(box: Sandbox, small: str, whole: str) -> None:
    """Every tensor of `small` has the bits of `whole`, where it has an expert too."""
    pruned = planned(box, small).base.pruned
    assert pruned is not None
    ours, theirs = tensors(box, small), tensors(box, whole)
    assert ours.keys() == theirs.keys()
    fewer = 0
    for name, array in ours.items():
        path, _, leaf = name.rpartition(".")
        of = f"{path}.weight" if leaf in ("scales", "biases") else name
        kept = pruned.indices(of, theirs[name].shape[0]) if of in pruned.places else None
        expected = theirs[name] if kept is None else theirs[name][mx.array(kept)]
        assert mx.array_equal(array, expected), name
        fewer += kept is not None
    assert fewer >= 8  # the router and three stacks of two layers
    assert config(box, small)["num_experts"] == pruned.keep


def test_experts_that_stay_have_the_bits_that_they_have_beside_all_others(project: Sandbox) -> None:
    heard: list[Event] = []
    assert build(project, "m_small", "m_4bit", heard=heard) == {"m_4bit": 4, "m_small": 2}  # in one pass
    assert_cut(project, "m_small", "m_4bit")
    before = tensors(project, "m_small")
    parts = [event.part for event in heard if isinstance(event, Learning)]
    assert "experts" in parts
    assert any("8 experts in 2 layers are measured with" in e.text for e in heard if isinstance(e, Note))
    (project.root / "store").rename(project.root / "former")  # alone, in a store without the other one
    assert build(project, "m_small") == {"m_small": 4}
    after = tensors(project, "m_small")
    assert all(mx.array_equal(after[name], array) for name, array in before.items())

    from mlx_lm import load

    model, tokenizer, *_ = load(str(project.view("m_small")))
    assert mx.isfinite(model(mx.array([tokenizer.encode("some words")]))).all()


def test_blocks_are_cut_out_of_blocks_that_are_there(project: Sandbox) -> None:
    build(project, "m_4bit")
    build(project, "m_f16")
    heard: list[Event] = []
    assert build(project, "m_small", heard=heard) == {"m_small": 2}  # embedding and norm are those of 4bit
    assert any("2 blocks cut out of blocks with all experts" in e.text for e in heard if isinstance(e, Note))
    assert_cut(project, "m_small", "m_4bit")
    heard.clear()
    assert build(project, "m_half", heard=heard) == {"m_half": 2}
    assert not any(isinstance(event, Learning) for event in heard)  # measured once for all variants
    assert_cut(project, "m_half", "m_f16")
    survival = [planned(project, name).inputs for name in ("m_small", "m_half")]
    assert all(each["experts_digest"] for each in survival)


def test_why_names_the_experts_and_a_change_of_them(project: Sandbox) -> None:
    build(project, "m_small")
    said = why(Project.load(project.toml), "m_small")
    assert said.bits[0].startswith("keeps 6 of 8 experts in each layer by REAP over")
    assert any("without a tenth of the experts, KL on" in line for line in said.bits)
    assert "| experts | 0.75 |" in (project.view("m_small") / "README.md").read_text()
    project.edit(
        "experts = 0.75\n" + TEXT + "\n[variant.half]", "experts = 0.5\n" + TEXT + "\n[variant.half]"
    )
    changed = why(Project.load(project.toml), "m_small")
    assert [change.text for change in changed.changes] == ["experts 0.75 -> 0.5"]
    assert len(changed.blocks) == 2
    (project.root / "text.jsonl").write_text(words(1))
    prepare_calibration(loaded := Project.load(project.toml), loaded.spec.variants["small"], lambda _: None)
    assert "its experts are not measured yet" in why(loaded, "m_small").reason


@pytest.mark.slow
def test_gc_and_verify_keep_what_was_measured(project: Sandbox) -> None:
    build(project, "m_small")
    assert "keeps 6 of 8 experts" in project.doit("why", "m_small").out
    assert project.doit("gc", "--grace", "0", "--yes").code == 0
    assert project.doit("verify").code == 0
    assert build(project, "m_small") == {"m_small": 0}
    (project.root / "text.jsonl").write_text(words(1))
    assert project.doit("why", "m_small").code == 1
    assert "experts not measured" in project.doit("status", "m_small").out


@pytest.mark.slow
def test_rounding_and_a_size_are_for_the_experts_that_stay(project: Sandbox) -> None:
    build(project, "m_small")
    assert build(project, "m_round") == {"m_round": 4}
    shapes = [{n: a.shape for n, a in tensors(project, name).items()} for name in ("m_small", "m_round")]
    assert shapes[0] == shapes[1]
    assert any(
        not mx.array_equal(array, tensors(project, "m_round")[name])
        for name, array in tensors(project, "m_small").items()
    )
    build(project, "m_sized")
    assert planned(project, "m_sized").bits_per_weight <= 5.2
    assert config(project, "m_sized")["num_experts"] == 6
    why = project.doit("why", "m_sized").out
    assert "keeps 6 of 8 experts" in why
    assert "bits for every weight" in why

    from mlx_lm import load

    for name in ("m_round", "m_sized"):
        model, tokenizer, *_ = load(str(project.view(name)))
        assert mx.isfinite(model(mx.array([tokenizer.encode("some words")]))).all()


# -- what cannot be ------------------------------------------------------------------------------------------


def test_a_share_that_the_router_cannot_work_with(project: Sandbox) -> None:
    project.edit(
        "experts = 0.75\n" + TEXT + "\n[variant.half]", "experts = 0.1\n" + TEXT + "\n[variant.half]"
    )
    says = "keeps 1 of 8 experts in each layer, but the router needs 2: a token goes to 2"
    with pytest.raises(PlanError, match=says):
        build(project, "m_small")
    assert not project.view("m_small").exists()
    assert says in project.doit("status", "m_small").out + project.doit("why", "m_small").text


def test_groups_of_experts_stay_equal(project: Sandbox) -> None:
    from tests.engine.test_routing import GLM

    make_mixture(project.root / "base", **GLM)
    project.edit('adapter = "tuned"\nvariants = ["f16", "4bit", "small"', 'base = "mix"\nvariants = ["small"')
    project.edit(
        "experts = 0.75\n" + TEXT + "\n[variant.half]", "experts = 0.875\n" + TEXT + "\n[variant.half]"
    )
    loaded = Project.load(project.toml)
    prepare_base(loaded, loaded.spec.bases["mix"], lambda _: None)
    with pytest.raises(
        PlanError, match="the router has 2 groups of experts, which must stay equal"
    ) as caught:
        deliver(loaded, "m_small", {"m_small"}, (), lambda _: None)
    assert "Keep 0.75 (6 of 8) or 1 (8 of 8)" in caught.value.report


def test_a_model_without_experts_is_refused_by_name(project: Sandbox) -> None:
    shutil.rmtree(project.root / "base")
    make_base(project.root / "base")
    project.edit('adapter = "tuned"\n', 'base = "mix"\n')
    ran = project.doit("model:m_small")
    assert ran.code != 0
    assert "The experts of model type qwen3 cannot be left out: it has none." in ran.text
    assert "Traceback" not in ran.text
    loaded = Project.load(project.toml)
    with pytest.raises(NotPrunable):
        measure_experts(loaded, loaded.spec.target("m_small"), lambda _: None)


def test_preparing_a_target_does_not_measure(project: Sandbox) -> None:
    loaded = Project.load(project.toml)
    with pytest.raises(ExpertsNotMeasured, match="leaves experts out, and they are not measured yet"):
        prepare_target(loaded, loaded.spec.target("m_small"), lambda _: None)
