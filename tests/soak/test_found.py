"""What the soak tests have found, each as the shortest sequence that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.console.events import silent
from builder.project.state import target_state
from builder.release.delivery import clean
from builder.store import blobs, records
from tests.soak import person
from tests.soak.sources import BLOCKS
from tests.soak.world import World, files_of, make_pool


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with person.quick():
        yield World.make(tmp_path / "world", make_pool(tmp_path / "pool"))


def run(world: World, which: str, *names: str) -> person.Ran:
    """A run that did what the plan said."""
    said, ran = person.run(world.folders[which] / "artifacts.toml", names)
    assert ran.blocks == sum(one.make for one in said.passes)
    assert ran.nbytes == sum(one.write for one in said.passes)
    assert sorted(ran.steps) == sorted(step.target for step in said.learned)
    return ran


@pytest.mark.parametrize("content", ["x-chat", "x-eos", "x-config"])
def test_a_small_file_of_the_base_makes_no_intermediate_for_what_was_learned(
    world: World, content: str
) -> None:
    """Its source was made again in full, and the plan said that the step would run."""
    run(world, "own", "m_q")
    store = world.open("own").store
    before = files_of(store.models / "m_q")
    world.put("folder", content, "rename")
    ran = run(world, "own", "m_q")
    assert (ran.blocks, ran.steps) == (0, [])
    after = files_of(store.models / "m_q")
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert (
        changed
        == {
            "x-chat": {"chat_template.jinja"},
            "x-eos": {"config.json", "generation_config.json"},
            "x-config": set(),  # generation_config.json says it, too
        }[content]
    )


def test_a_run_keeps_what_its_next_target_reads(world: World) -> None:
    """m_f16 was pruned with the blocks that n_f16 shares with it, which were then made a second time."""
    world.declared["own"].bases["g"] = "live/base"
    world.declared["own"].adapters["a"] = ("b", "pool/a2")
    world.declared["own"].adapters["c"] = ("g", "pool/a3")
    world.write("own")
    ran = run(world, "own", "m_q", "n_q")
    assert ran.blocks == BLOCKS + 1  # the two adapters change one block
    store = world.open("own").store
    shown = {*files_of(store.models / "m_q").values(), *files_of(store.models / "n_q").values()}
    kept = [record for key in records.record_keys(store) if (record := records.read(store, key))]
    digests = {one.blob.digest for one in kept if one.kind == "block"}
    assert not (digests - shown) & blobs.present(store).keys()  # both intermediates are gone


def test_a_cleaned_learned_target_frees_its_bytes(world: World) -> None:
    """The manifest of its step kept them."""
    run(world, "own", "m_q")
    store = world.open("own").store
    shards = {d for name, d in files_of(store.models / "m_q").items() if name.endswith(".safetensors")}
    assert shards
    assert shards <= blobs.present(store).keys()
    clean(world.open("own"), ["m_q"], silent)
    assert not shards & blobs.present(store).keys()
    project = world.open("own")
    assert target_state(project.store, project.plan.targets["m_q"]).kind == "not built"
    assert run(world, "own", "m_q").steps == ["m_q"]


def test_a_step_that_two_names_share_runs_once(world: World) -> None:
    declared = world.declared["own"]
    declared.models["n"] = ("a", list(declared.models["m"][1]))
    world.write("own")
    assert run(world, "own", "m_q", "n_q").steps == ["m_q"]


def test_a_whole_learned_target_needs_no_step(world: World) -> None:
    """A view that is gone, and the manifest of the step with it: that was `m_f16 is not on disk`."""
    run(world, "own", "m_q")
    project = world.open("own")
    (step,) = [m for m in records.manifests(project.store) if m.kind == "learned"]
    records.manifest_path(project.store, step.key).unlink()
    clean_view = project.store.models / "m_q"
    for file in clean_view.iterdir():
        file.unlink()
    clean_view.rmdir()
    ran = run(world, "own", "m_q")
    assert (ran.blocks, ran.steps) == (0, [])
    assert clean_view.is_dir()


def test_clean_keeps_what_an_undeclared_view_of_another_checkout_shows(world: World) -> None:
    """Its bytes went, and verify called the view damaged."""
    for name in ("one", "two"):
        run(world, name, "k_v8")
    world.declared["one"].models["k"][1].remove("v8")
    world.write("one")
    run(world, "one", "k_v4")  # registers what it declares now
    clean(world.open("two"), ["k_v8"], silent)
    assert person.look(world.open("one")).is_clean
