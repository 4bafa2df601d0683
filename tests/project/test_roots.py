"""What gc must keep for a project, and how a checkout tells it to the store."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builder.console.events import Event, Hashing
from builder.errors import GcRefused
from builder.keys import Key
from builder.plan.types import TargetPlan, Unresolved
from builder.project import roots
from builder.project.project import Project
from builder.project.result_keys import reference_key, result_key
from builder.project.roots import (
    Roots,
    fingerprint,
    freeable,
    gc_plan,
    keep_registered,
    known_roots,
    register,
    roots_of,
)
from builder.sources.catalog import structure_key
from builder.store import checkouts
from builder.store.care.policy import Policy
from tests.toy import DECLARATION, build, make_toy, planned, prepared, save_adapter, write

NOW = Policy(grace_s=0)
FIDELITY = """suites = ["said", "ppl"]

[suite.said]
kind = "fidelity"
data = "rows.jsonl"

[suite.ppl]
kind = "perplexity"
data = "rows.jsonl"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "project")


def again(project: Project) -> Project:
    return Project.load(project.spec.file)


def registered(project: Project) -> frozenset[Key] | None:
    found = {checkout.folder: checkout.keys for checkout in checkouts.registered(project.store)}
    return found.get(project.spec.file.parent.resolve())


# -- roots_of ------------------------------------------------------------------------------------------------


def test_every_declared_target_its_actions_and_the_structure_of_its_base(file: Path) -> None:
    project = prepared(file)
    wanted = set()
    for name in ("m_f16", "m_4bit", "m_8bit"):  # an intermediate too: its records stay
        plan = planned(project, name)
        wanted |= {plan.key, plan.config, *(action.key for action in plan.actions)}
        wanted.add(structure_key(plan.base.weights))
    assert roots_of(project) == Roots(frozenset(wanted), ())
    assert len(wanted) == 3 * (1 + 1 + 3) + 1


def test_what_is_not_declared_any_more_is_no_root(file: Path) -> None:
    project = prepared(file)
    gone = planned(project, "m_8bit")
    file.write_text(file.read_text().replace(', "8bit"]', "]"))
    assert not {gone.key, *gone.keys} & roots_of(again(project)).keys


def test_what_cannot_be_planned_has_no_keys(file: Path) -> None:
    roots = roots_of(Project.load(file))
    assert roots.keys == frozenset()
    reason = "base:toy has not been inspected yet"
    assert roots.doubts == tuple(f"{name}: {reason}" for name in ("m_f16", "m_4bit", "m_8bit"))


def test_what_was_measured_and_the_answers_of_the_unquantized_model_are_kept(tmp_path: Path) -> None:
    """They are dear to make again. Questions that are missing are a doubt about their suite alone."""
    file = make_toy(tmp_path / "project", DECLARATION + FIDELITY)
    rows = tmp_path / "project/rows.jsonl"
    project = prepared(file)
    without = roots_of(project)
    assert {doubt.partition(":")[0] for doubt in without.doubts} == {"suite said", "suite ppl"}
    rows.write_text('{"messages": []}\n')
    project = again(project)
    wanted = set(without.keys)
    for plan in project.plan.resolved():
        for name in ("said", "ppl"):
            wanted.add(result_key(project, plan.target.model, plan.measured, project.spec.suites[name]))
        wanted.add(reference_key(project, plan, project.spec.suites["said"]))
    assert roots_of(project) == Roots(frozenset(wanted), ())
    assert len(wanted) == len(without.keys) + 3 * 2 + 1  # one reference for all variants


def test_a_doubt_keeps_what_was_known_last(tmp_path: Path) -> None:
    """Of one suite the questions are gone: the answers to them stay, and what is undeclared too."""
    file = make_toy(tmp_path / "project", DECLARATION + FIDELITY)
    rows = tmp_path / "project/rows.jsonl"
    rows.write_text('{"messages": []}\n')
    project = prepared(file)
    register(project)
    whole = roots_of(project).keys
    rows.unlink()
    project = again(project)
    assert roots_of(project).keys < whole
    assert known_roots(project).keys == whole
    register(project)  # a run in doubt does not make the store forget
    assert registered(project) == whole


def test_gc_keeps_the_answers_of_suites_whose_questions_are_there(tmp_path: Path) -> None:
    """One missing file once took the answers to all questions."""
    two = FIDELITY.replace('"rows.jsonl"\n', '"other.jsonl"\n', 1).replace(
        'kind = "perplexity"', 'kind = "fidelity"'
    )
    file = make_toy(tmp_path / "project", DECLARATION + two)
    for name in ("rows.jsonl", "other.jsonl"):
        (file.parent / name).write_text(f'{{"messages": ["{name}"]}}\n')
    project = prepared(file)
    plan = build_plan(project)
    keys = {name: reference_key(project, plan, project.spec.suites[name]) for name in ("said", "ppl")}
    for key in keys.values():
        write(project, key, "reference", 1000)
    other = file.parent / "other.jsonl"  # the questions of `said`
    other.rename(file.parent / "elsewhere")
    gone = gc_plan(again(project), NOW)
    assert keys["ppl"] not in gone.records
    assert keys["said"] in gone.records  # this checkout has never told the store of it
    (file.parent / "elsewhere").rename(other)
    register(again(project))
    other.unlink()
    assert not set(keys.values()) & set(gc_plan(again(project), NOW).records)


def build_plan(project: Project) -> TargetPlan:
    build(project, "m_4bit")
    return planned(project, "m_4bit")


# -- register ------------------------------------------------------------------------------------------------


def test_a_checkout_tells_what_it_needs(file: Path) -> None:
    project = prepared(file)
    register(project)
    assert registered(project) == roots_of(project).keys


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows when a checkout is registered; each run asks once."""
    calls: list[str] = []
    real = roots.register

    def noted(project: Project) -> None:
        calls.append("registered")
        real(project)

    monkeypatch.setattr(roots, "register", noted)
    monkeypatch.setattr(roots, "_TRIED", set())
    return calls


def written(file: Path, seconds: int) -> None:
    """As if the declaration had been written so many seconds after the checkout was last registered."""
    (known,) = (file.parent / "store/roots").glob("*.json")
    at = known.stat().st_mtime_ns + seconds * 10**9
    os.utime(file, ns=(at, at))
    roots._TRIED.clear()


def test_it_is_registered_once(file: Path, asked: list[str]) -> None:
    project = prepared(file)
    keep_registered(project)
    assert asked == ["registered"]
    assert registered(project) == roots_of(project).keys
    keep_registered(project)
    written(file, -10)
    keep_registered(again(project))
    assert asked == ["registered"]


def test_a_declaration_that_was_only_touched_is_not_registered_again(file: Path, asked: list[str]) -> None:
    project = prepared(file)
    keep_registered(project)
    written(file, +10)
    keep_registered(again(project))
    assert asked == ["registered"]


def test_a_changed_declaration_is_registered_again(file: Path, asked: list[str]) -> None:
    project = prepared(file)
    keep_registered(project)
    before = registered(project)
    file.write_text(file.read_text().replace("bits = 8", "bits = 6"))
    written(file, +10)
    keep_registered(again(project))
    assert asked == ["registered"] * 2
    assert registered(project) == roots_of(again(project)).keys != before


def test_a_declaration_that_is_replaced_after_it_was_read(file: Path, asked: list[str]) -> None:
    """What the former one needs was registered later than the new one was written, and was taken for it."""
    project = prepared(file)
    new = file.read_text().replace("bits = 8", "bits = 6")
    file.write_text(new)
    later = again(project)
    keep_registered(later)
    register(project)  # of a run that began before
    assert registered(project) >= roots_of(later).keys
    assert gc_plan(project, NOW).roots >= roots_of(later).keys  # its gc keeps what the new one needs
    roots._TRIED.clear()
    keep_registered(again(project))
    assert asked == ["registered"] * 2
    assert registered(project) == roots_of(again(project)).keys


def test_a_checkout_that_was_forgotten_registers_again(file: Path, asked: list[str]) -> None:
    project = prepared(file)
    keep_registered(project)
    assert checkouts.forget(project.store, file.parent)
    roots._TRIED.clear()
    keep_registered(again(project))
    assert asked == ["registered"] * 2
    assert registered(project) == roots_of(project).keys


def test_a_declaration_that_is_gone_is_no_error(file: Path, asked: list[str]) -> None:
    project = prepared(file)
    file.unlink()
    keep_registered(project)
    assert asked == []


# -- fingerprint ---------------------------------------------------------------------------------------------


def reason(project: Project) -> str:
    plan = project.plan.targets["m_4bit"]
    assert isinstance(plan, Unresolved)
    return plan.reason


def test_the_files_of_bases_are_hashed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.sources.catalog.HASH_AT_ONCE", 0)
    project = Project.load(file)
    assert reason(project) == "base:toy has not been fingerprinted yet"
    told: list[Event] = []
    fingerprint(project, told.append)
    hashed = {event.what: event.total for event in told if isinstance(event, Hashing)}
    assert hashed == {path.name: path.stat().st_size for path in (file.parent / "base").iterdir()}
    assert reason(project) == "base:toy has not been inspected yet"


def test_a_source_that_cannot_be_used_is_passed_by(file: Path) -> None:
    shutil.rmtree(file.parent / "base")
    fingerprint(Project.load(file), lambda event: pytest.fail(f"{event}"))


# -- gc_plan -------------------------------------------------------------------------------------------------


def names(project: Project, policy: Policy = NOW) -> list[str]:
    return sorted(manifest.name for manifest in gc_plan(project, policy).manifests)


def test_what_is_declared_stays_and_the_rest_goes(file: Path) -> None:
    project = prepared(file)
    for name in ("m_4bit", "m_8bit"):
        build(project, name)
    assert names(project) == []
    file.write_text(file.read_text().replace(', "8bit"]', "]"))
    assert names(again(project)) == ["m_8bit"]


def test_a_former_adapters_blocks_go(file: Path) -> None:
    project = prepared(file)
    build(project, "m_4bit")
    save_adapter(file.parent / "adapter", fill=1)
    plan = gc_plan(again(project), NOW)
    assert [manifest.name for manifest in plan.manifests] == ["m_4bit"]
    former = planned(project, "m_4bit").actions[2]
    assert former.size in {blob.size for blob in plan.blobs}
    shared = set(plan.records) & {a.key for a in planned(project, "m_4bit").actions[:2]}
    assert not shared  # the blocks that the adapter does not touch


def test_while_something_is_unknown_the_last_known_roots_stay(file: Path) -> None:
    """Its base is away for now: what is not known is not deleted."""
    project = prepared(file)
    build(project, "m_4bit")
    register(project)
    (file.parent / "base").rename(file.parent / "elsewhere")
    assert names(again(project)) == []
    (file.parent / "elsewhere").rename(file.parent / "base")
    file.write_text(file.read_text().replace('"4bit", ', ""))  # and what is known to be needed no more, goes
    assert names(again(project)) == ["m_4bit"]


def test_with_nothing_known_it_refuses(file: Path) -> None:
    project = prepared(file)
    build(project, "m_4bit")
    (file.parent / "base").rename(file.parent / "elsewhere")
    with pytest.raises(GcRefused) as caught:
        gc_plan(again(project), NOW)
    assert caught.value.message.startswith(
        "gc refuses: what the declared targets need is not known (m_f16: base:toy cannot be used: "
    )
    assert caught.value.message.endswith(", so everything would be deleted.")
    assert "`doit plan`" in caught.value.hint_text
    assert names(again(project), replace(NOW, allow_no_roots=True)) == ["m_4bit"]


def test_another_checkout_keeps_what_it_needs(tmp_path: Path, file: Path) -> None:
    project = prepared(file)
    build(project, "m_8bit")
    register(project)
    store = f'[store]\npath = "{file.parent / "store"}"\n\n'
    other = prepared(make_toy(tmp_path / "other", store + DECLARATION.replace(', "8bit"]', "]")))
    assert other.store.root.samefile(project.store.root)
    assert names(other) == []
    checkouts.forget(project.store, file.parent)
    assert names(other) == ["m_8bit"]


def test_freeable_is_what_a_plain_gc_would_free(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = prepared(file)
    manifest = build(project, "m_8bit")
    assert freeable(project) == 0
    file.write_text(file.read_text().replace(', "8bit"]', "]"))
    assert freeable(again(project)) == 0  # it has an hour of grace
    now = time.time_ns
    monkeypatch.setattr("builder.project.roots.time.time_ns", lambda: now() + 2 * 3600 * 10**9)
    assert freeable(again(project)) == manifest.size
    file.write_text("")
    assert freeable(again(project)) > manifest.size  # the structure too; asking refuses nothing
