"""The quick answer to "is it built?" is the slow one's: after every kind of damage, and for every change."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.project.project import Project
from builder.project.state import target_state
from builder.store import blobs, records
from tests.commands.test_status import make_project
from tests.conftest import Sandbox
from tests.tiny import make_adapter


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    box = make_project(tmp_path_factory.mktemp("noop") / "project")
    assert box.doit("model:m_5bit").code == 0
    return box.root


@pytest.fixture
def box(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True, copy_function=shutil.copy2)
    monkeypatch.chdir(root)
    return Sandbox(root)


def both(box: Sandbox) -> tuple[bool, bool]:
    """Quick and slow answer, each from a project opened anew."""
    quick = Project.load(box.toml)
    slow = Project.load(box.toml)
    return quick.is_built("m_5bit"), target_state(slow.store, slow.plan.targets["m_5bit"]).built


def shard(box: Sandbox) -> Path:
    return next(box.view("m_5bit").glob("model-00003*"))


def blob_of(box: Sandbox, file: Path) -> Path:
    project = Project.load(box.toml)
    manifest = records.read_manifest(project.store, project.keys["m_5bit"])
    assert manifest is not None
    (entry,) = (entry for entry in manifest.files if entry.name == file.name)
    return blobs.path(project.store, entry.blob.digest)


def overwrite(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    writable(file).write_bytes(data)


def writable(file: Path) -> Path:
    file.chmod(0o644)
    return file


def replace_by_link(file: Path) -> None:
    other = file.with_name("elsewhere")
    file.rename(other)
    file.symlink_to(other)


def test_built(box: Sandbox) -> None:
    assert both(box) == (True, True)


def test_hard_links_are_recognized(box: Sandbox) -> None:
    """As in views on file systems that cannot reflink."""
    file = shard(box)
    blob = blob_of(box, file)
    file.unlink()
    file.hardlink_to(blob)
    assert both(box) == (True, True)


DAMAGE: dict[str, Callable[[Sandbox], object]] = {
    "a blob deleted": lambda box: blob_of(box, shard(box)).unlink(),
    "a blob overwritten": lambda box: overwrite(blob_of(box, shard(box))),
    "a blob cut": lambda box: os.truncate(writable(blob_of(box, shard(box))), 10),
    "a view's file deleted": lambda box: shard(box).unlink(),
    "a view's file overwritten": lambda box: overwrite(shard(box)),
    "a view's file replaced by a link": lambda box: replace_by_link(shard(box)),
    "a foreign shard in the view": lambda box: (box.view("m_5bit") / "model-99.safetensors").touch(),
    "the view deleted": lambda box: shutil.rmtree(box.view("m_5bit")),
    "the view's manifest deleted": lambda box: (box.view("m_5bit") / "artifact.toml").unlink(),
    "the manifest deleted": lambda box: next((box.root / "store/targets").iterdir()).unlink(),
    "the manifest damaged": lambda box: overwrite(next((box.root / "store/targets").iterdir())),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(box: Sandbox, name: str) -> None:
    assert both(box) == (True, True)
    DAMAGE[name](box)
    assert both(box) == (False, False)


def test_a_broken_seal_is_left_to_the_slow_way(box: Sandbox) -> None:
    file = blob_of(box, shard(box))
    os.utime(file, ns=(1, 1_000_000_123_456_789))
    assert both(box) == (False, True)  # rehashed, and sealed again
    assert both(box) == (True, True)


CHANGES: dict[str, Callable[[Sandbox], object]] = {
    "a setting": lambda box: box.edit("bits = 5\ngroup_size = 64", "bits = 5\ngroup_size = 32"),
    "the adapter": lambda box: make_adapter(box.root / "adapter", seed=9),
    "a copied file": lambda box: (box.root / "base/chat_template.jinja").write_text("x"),
    "the base's config": lambda box: (box.root / "base/config.json").write_text("{}"),
    "the toolchain": lambda box: box.toml.write_text(
        "[build]\nstrict_toolchain = true\n" + box.toml.read_text()
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen(box: Sandbox, name: str) -> None:
    assert both(box) == (True, True)
    CHANGES[name](box)
    assert both(box) == (False, False)


def test_the_index_holds_the_keys_of_the_plan(box: Sandbox) -> None:
    first = Project.load(box.toml)
    planned = {target.name: target.key for target in first.plan.resolved()}
    assert dict(first.keys) == planned
    again = Project.load(box.toml)
    assert dict(again.keys) == planned
    assert "plan" not in again.__dict__  # nothing was planned


def test_a_comment_plans_again_and_rebuilds_nothing(box: Sandbox) -> None:
    box.toml.write_text("# a comment\n" + box.toml.read_text())
    assert both(box) == (True, True)


def test_a_lost_cache_costs_time_only(box: Sandbox) -> None:
    for file in (box.root / "store").glob("state.sqlite*"):
        file.unlink()
    assert both(box) == (True, True)


def test_a_second_answer_opens_the_view_only(box: Sandbox) -> None:
    """No record, no manifest, no shard: times and sizes tell. bench/noop.py has the figures."""
    project = Project.load(box.toml)
    opened: list[object] = []
    watching = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
            opened.append(arguments[0])

    sys.addaudithook(watch)  # stays, for hooks cannot be taken away
    watching = True
    assert project.is_built("m_5bit")
    first, opened = opened, []
    assert project.is_built("m_5bit")
    watching = False
    view = box.root / "store/models/m_5bit"
    assert len(first) > 2
    assert {Path(str(path)) for path in opened} <= {view, view / "artifact.toml"}
