"""Intermediates exist only while something needs them: which go, and what going leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.build.intermediates import prunable, prune_intermediates
from builder.console.events import Event, Note
from builder.console.words import size_text
from builder.keys import Digest, Key
from builder.plan.types import TargetPlan, Unresolved
from builder.project.project import Project
from builder.project.state import target_state
from builder.sources.facts import BaseFacts, BaseIdentity
from builder.spec.quantizers import Learned
from builder.spec.types import Model, Quantization, Target, Variant
from builder.store import blobs, pins, records
from tests.toy import DECLARATION, LEARNED, STRUCTURE, build, make_toy, planned, prepared, save_adapter


def plan(
    variant: str, *, intermediate: bool = False, needs: str | None = None, model: str = "m"
) -> TargetPlan:
    """As far as pruning looks at it."""
    learned = Learned("dwq", needs, Path("text.txt")) if needs else None
    how = Variant(variant, quantization=Quantization(4, 64), intermediate=intermediate, learned=learned)
    target = Target(Model(model, "toy", None, (variant,)), how)
    digest, key = Digest("b" * 64), Key("0" * 64)
    base = BaseFacts(BaseIdentity(digest, digest, digest, digest, ()), STRUCTURE)
    return TargetPlan(
        target, key, base, None, None, {}, (), key, (), {}, key, needs=needs and f"{model}_{needs}"
    )


F16 = plan("f16", intermediate=True)
BF16 = plan("bf16", intermediate=True)
FOUR = plan("4bit")
DWQ, AWQ, GPTQ = (plan(name, needs="f16") for name in ("dwq", "awq", "gptq"))
OTHER = plan("other", needs="bf16")
CHAIN = plan("chain", intermediate=True, needs="f16")
UNRESOLVED = Unresolved(DWQ.target, "its calibration text is missing")


@pytest.mark.parametrize(
    ("plans", "built", "pinned", "go"),
    [
        ([], [], [], []),
        ([FOUR], ["m_4bit"], [], []),  # no intermediate
        ([F16], [], [], ["m_f16"]),  # nobody is made from it
        ([F16, FOUR], [], [], ["m_f16"]),  # 4bit is made from the sources, built or not
        ([F16, DWQ], [], [], []),
        ([F16, DWQ], ["m_dwq"], [], ["m_f16"]),
        ([F16, DWQ], ["m_f16"], [], []),
        ([F16, DWQ, AWQ], ["m_dwq"], [], []),  # one of two waits
        ([F16, DWQ, AWQ], ["m_dwq", "m_awq"], [], ["m_f16"]),
        ([F16, DWQ], ["m_dwq"], ["m_f16"], []),
        ([F16], [], ["m_f16"], []),
        ([F16, DWQ], ["m_dwq"], ["m_dwq"], ["m_f16"]),  # a pin holds what it names
        ([F16, BF16, DWQ, OTHER], ["m_dwq"], [], ["m_f16"]),
        ([F16, BF16, DWQ, OTHER], ["m_other"], [], ["m_bf16"]),
        ([BF16, F16], [], [], ["m_bf16", "m_f16"]),  # in the order in which they are declared
        ([F16, CHAIN], [], [], ["m_chain"]),
        ([F16, plan("f16", intermediate=True, model="n"), DWQ], [], [], ["n_f16"]),  # of another model
        ([F16, plan("dwq", needs="f16", model="n")], [], [], ["m_f16"]),
        ([F16, UNRESOLVED], [], [], []),  # it cannot be planned now, and needs what it is made from
        ([F16, UNRESOLVED, AWQ], ["m_awq"], [], []),
        ([F16, BF16, UNRESOLVED], [], [], ["m_bf16"]),
        ([Unresolved(F16.target, "its base is missing"), DWQ], ["m_dwq"], [], []),
    ],
)
def test_prunable(
    plans: list[TargetPlan | Unresolved], built: list[str], pinned: list[str], go: list[str]
) -> None:
    assert [plan.name for plan in prunable(plans, frozenset(built), frozenset(pinned))] == go
    assert [p.name for p in prunable(iter(plans), frozenset(built), frozenset(pinned))] == go


# -- with a store ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return prepared(
        make_toy(tmp_path / "project", DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + LEARNED)
    )


def pruned(project: Project) -> list[str]:
    """What pruning tells."""
    told: list[Event] = []
    project = Project.load(project.spec.file)
    prune_intermediates(project, told.append)
    assert all(isinstance(event, Note) for event in told)
    return [event.text for event in told if isinstance(event, Note)]


def test_it_goes_when_what_needs_it_is_built(project: Project) -> None:
    build(project, "m_4bit")
    manifest = build(project, "m_f16")
    assert pruned(project) == []  # m_dwq is still to be made of it
    build(project, "m_dwq")
    kept = planned(project, "m_4bit").base.aux  # copied into every target
    freed = manifest.size - sum(entry.blob.size for entry in kept)
    assert pruned(project) == [f"pruned m_f16: {size_text(freed)} freed"]
    assert not (project.store.models / "m_f16").exists()
    held = [entry for entry in manifest.files if blobs.has(project.store, entry.blob)]
    assert held == list(kept)
    for name in ("m_4bit", "m_dwq"):
        assert target_state(project.store, planned(project, name)).built
    assert pruned(project) == []


def test_its_records_stay_so_it_is_not_out_of_date(project: Project) -> None:
    build(project, "m_f16")
    build(project, "m_dwq")
    assert len(pruned(project)) == 1
    plan = planned(project, "m_f16")
    assert target_state(project.store, plan).kind == "not kept"
    assert records.read_manifest(project.store, plan.key) is not None
    assert all(records.read(project.store, key) is not None for key in plan.keys)


def test_asked_for_by_name_it_stays(project: Project) -> None:
    build(project, "m_f16")
    build(project, "m_dwq")
    pins.pin(project.store, "m_f16")
    assert pruned(project) == []
    assert target_state(project.store, planned(project, "m_f16")).built
    pins.unpin(project.store, "m_f16")
    assert len(pruned(project)) == 1


def test_it_stays_while_what_needs_it_cannot_be_planned(project: Project) -> None:
    build(project, "m_f16")
    build(project, "m_dwq")
    text = project.spec.file.parent / "text.txt"
    text.rename(text.with_name("elsewhere"))
    assert pruned(project) == []
    assert target_state(project.store, planned(project, "m_f16")).built
    text.with_name("elsewhere").rename(text)
    assert len(pruned(project)) == 1


def test_a_former_one_goes_too(project: Project) -> None:
    """Made of an adapter that is no longer the declared one."""
    build(project, "m_f16")
    save_adapter(project.spec.file.parent / "adapter", fill=1)
    changed = Project.load(project.spec.file)
    assert pruned(changed) == []  # m_dwq is to be made anew
    build(changed, "m_dwq")
    assert len(pruned(changed)) == 1
    assert not (project.store.models / "m_f16").exists()


def test_nothing_on_disk_is_nothing_to_do(project: Project) -> None:
    build(project, "m_4bit")
    assert pruned(project) == []
    assert target_state(project.store, planned(project, "m_4bit")).built
