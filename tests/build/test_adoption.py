"""A store of format 1: what proves itself is taken over under its present key, the rest is made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.build.adoption import former_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.store import blobs, records
from tests.build.test_one_pass import built
from tests.conftest import Sandbox
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


@pytest.fixture
def done(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    assert built(box.doit("m_4bit")) == {"m_4bit": BLOCKS}
    return box


def as_format_1(box: Sandbox) -> list[Path]:
    """Turns the store into one of format 1, where m_4bit is built. The blobs of its blocks."""
    project = Project.load(box.toml)
    plan = project.plan.targets["m_4bit"]
    assert isinstance(plan, TargetPlan)
    store, found = project.store, []
    for action in plan.actions:
        record = records.read(store, action.key)
        assert record is not None
        records.path(store, action.key).unlink()
        records.write(store, replace(record, key=former_key(plan, action)))
        found.append(blobs.path(store, record.blob.digest))
    for folder in (store.targets, store.models, store.roots):
        shutil.rmtree(folder)
    (store.root / "version").write_text("1\n")
    return found


def test_blocks_that_prove_themselves_are_not_made_again(done: Sandbox) -> None:
    before = {
        file.name: file.read_bytes() for file in done.view("m_4bit").iterdir() if file.suffix != ".toml"
    }
    assert len(as_format_1(done)) == BLOCKS
    ran = done.doit("m_4bit")
    assert built(ran) == {"m_4bit": 0}
    assert f"m_4bit: {BLOCKS} blocks taken over from the former format of the store" in ran.text
    assert (done.root / "store/version").read_text() == "2\n"
    after = {file.name: file.read_bytes() for file in done.view("m_4bit").iterdir() if file.suffix != ".toml"}
    assert after.keys() == before.keys()
    assert [name for name in before if name != "README.md" and before[name] != after[name]] == []
    assert "0 damaged" in done.doit("verify").text


def test_a_blob_that_is_not_what_its_name_says_is_made_again(done: Sandbox) -> None:
    blob = as_format_1(done)[1]
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    ran = done.doit("m_4bit")
    assert built(ran) == {"m_4bit": 1}
    assert f"m_4bit: {BLOCKS - 1} blocks taken over" in ran.text
    assert "0 damaged" in done.doit("verify").text


def test_nothing_of_other_weights_is_taken_over(done: Sandbox) -> None:
    as_format_1(done)
    shutil.rmtree(done.root / "base")
    make_base(done.root / "base", seed=7)
    ran = done.doit("m_4bit")
    assert built(ran) == {"m_4bit": BLOCKS}
    assert "taken over" not in ran.text
