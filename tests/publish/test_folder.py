"""Publishing into a folder, such as that of LM Studio: replaced as a whole, and only when it is ours."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from builder.console.events import silent
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.publish import folder
from builder.publish.bundle import Plan
from builder.publish.errors import PlaceFailed, PlaceRefused, PublishRefused
from builder.publish.publication import find, look, publish
from builder.store.disk import capability
from tests.toy import DECLARATION, build, make_toy, prepared

PUBLISH = """
[publish.disk]
target = "m_4bit"
to = "lmstudio://me/toy"
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project = prepared(make_toy(tmp_path / "project", DECLARATION + PUBLISH))
    build(project, "m_4bit")
    build(project, "m_8bit")
    return project


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "home/.lmstudio/models/me/toy"


def sent(project: Project) -> Plan:
    return publish(project, find(project, "disk"), silent)


def edit(project: Project, old: str, new: str) -> Project:
    text = project.spec.file.read_text()
    assert old in text
    project.spec.file.write_text(text.replace(old, new))
    return Project.load(project.spec.file)


def content(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name != folder.MARKER}


def test_put_once_then_known_then_replaced(toy: Project, place: Path) -> None:
    assert not look(toy, find(toy, "disk"), silent).exists
    assert not place.exists(), "a dry run changes nothing"
    sent(toy)
    view = toy.store.models / "m_4bit"
    for path in view.glob("*.safetensors"):
        assert (place / path.name).read_bytes() == path.read_bytes()
        assert not (place / path.name).samefile(path), "an edit there must not reach the store"
        assert os.access(place / path.name, os.W_OK)
    inode = place.stat().st_ino
    assert sent(toy).is_empty
    assert place.stat().st_ino == inode
    other = sent(edit(toy, 'target = "m_4bit"', 'target = "m_8bit"'))
    assert other.named("same")
    assert {*content(place)} == {file.name for file in other.bundle.files}
    assert [path.name for path in place.parent.iterdir()] == ["toy"]


def test_a_hard_link_only_on_request(toy: Project, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, "no clones here")

    monkeypatch.setattr(capability, "reflink", cannot)
    sent(edit(toy, 'to = "lmstudio', 'link = true\nto = "lmstudio'))
    blob = next((toy.store.models / "m_4bit").glob("*.safetensors"))
    assert (place / blob.name).stat().st_ino in {
        path.stat().st_ino for path in toy.store.blobs.rglob("*") if path.is_file()
    }


def test_what_is_not_ours_stays(toy: Project, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "theirs.gguf").write_bytes(b"x")
    with pytest.raises(PlaceRefused, match="something is there that this program did not put there"):
        sent(toy)
    (place / "theirs.gguf").unlink()
    place.rmdir()
    sent(toy)
    (place / "added.txt").write_text("mine")
    with pytest.raises(PlaceRefused, match="added.txt is there, which this program did not put there"):
        sent(edit(toy, 'target = "m_4bit"', 'target = "m_8bit"'))
    (place / "added.txt").unlink()
    (place / ".DS_Store").write_text("a file manager's own business")
    (place / "config.json").chmod(0o644)
    (place / "config.json").write_text("{}")
    with pytest.raises(PlaceRefused, match="config.json was changed since it was published"):
        sent(toy)
    assert (place / "config.json").read_text() == "{}"


def test_a_full_disk_leaves_what_was_there(
    toy: Project, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(toy)
    before = content(place)
    put, room = folder._put, 0

    def full(*args: object, **options: object) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(*args, **options)  # type: ignore[arg-type]

    changed = edit(toy, 'target = "m_4bit"', 'target = "m_8bit"')
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_put", full)
        for after in range(4):
            room = after
            with pytest.raises(PlaceFailed, match="No space left on device"):
                sent(changed)
            assert content(place) == before
            assert [path.name for path in place.parent.iterdir()] == ["toy"]
    assert not sent(changed).is_empty


def test_what_a_killed_run_left_is_cleared(toy: Project, place: Path) -> None:
    staged = place.with_name(".toy.modelkiln")
    staged.mkdir(parents=True)
    (staged / folder.MARKER).write_text(json.dumps({"format": 1, "files": {}}))
    (staged / "half.safetensors").write_bytes(b"half")
    sent(toy)
    assert [path.name for path in place.parent.iterdir()] == ["toy"]
    staged.mkdir()
    (staged / "theirs").write_bytes(b"x")
    with pytest.raises(PlaceRefused, match=r"\.toy\.modelkiln beside it is in the way"):
        sent(edit(toy, 'target = "m_4bit"', 'target = "m_8bit"'))


def test_only_what_is_built_and_passes(toy: Project, place: Path) -> None:
    with pytest.raises(NotBuilt):
        sent(edit(toy, 'target = "m_4bit"', 'target = "m_f16"'))
    suite = '\n[suite.s]\nkind = "command"\ncommand = "true"\n'
    required = edit(toy, 'variants = ["f16", "4bit", "8bit"]\n', SUITED + suite)
    with pytest.raises(PublishRefused, match=r"m_f16|s\.figure >= 1: not measured"):
        sent(edit(required, 'target = "m_f16"', 'target = "m_4bit"'))
    assert not place.exists()
    said = sent(edit(required, 'target = "m_4bit"', 'target = "m_4bit"\noverride = "for a demo"'))
    assert "> **This model misses a requirement of its authors" in said.bundle.card
    assert "s.figure >= 1: not measured" in (place / "README.md").read_text()
    assert "The reason that was given: for a demo" in (place / "README.md").read_text()
    assert any("misses its requirements, and the card says so" in note for note in said.bundle.notes)


SUITED = """variants = ["f16", "4bit", "8bit"]
suites = ["s"]

[model.m.require]
"s.figure" = ">= 1"
"""
