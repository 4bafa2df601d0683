"""A view may hold a folder of files (further chat templates), which is treated as the other files are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.keys import make_key
from builder.store import blobs, briefs, records, statcache, views
from builder.store.care import verify
from builder.store.care.findings import Kind
from builder.store.disk import capability
from builder.store.format import open_store
from builder.store.layout import Store, is_file_name
from builder.store.types import FileEntry, Manifest

TOOLS = "additional_chat_templates/tool_use.jinja"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def shown(store: Store, *names: str) -> tuple[Manifest, Path]:
    files = tuple(FileEntry(name, blobs.ingest(store, [name.encode()])) for name in names)
    manifest = Manifest(make_key("t", *names), "target", "t", "2025-01-01T00:00:00Z", files)
    manifest = records.write_manifest(store, manifest)
    views.materialize(store, store.models / "t", manifest)
    return manifest, store.models / "t"


@pytest.mark.parametrize("way", ["as it is", "copies"])
def test_a_file_in_a_folder_is_there_and_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "copies":

        def refused(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(capability, "reflink", refused)
        monkeypatch.setattr(capability, "hardlink", refused)
    manifest, folder = shown(store, "config.json", TOOLS)
    assert (folder / TOOLS).read_text() == TOOLS
    assert views.is_current(store, folder, manifest)
    assert briefs.Seen(store, statcache.StatCache(store)).shows("t", manifest.key)
    assert verify.verify(store).findings == ()


@pytest.mark.parametrize("damage", ["gone", "edited", "the folder is gone"])
def test_damage_in_a_folder_is_seen(store: Store, damage: str) -> None:
    manifest, folder = shown(store, "config.json", TOOLS)
    if damage == "gone":
        (folder / TOOLS).unlink()
    elif damage == "edited":
        (folder / TOOLS).unlink()
        (folder / TOOLS).write_text("another")
    else:
        shutil.rmtree((folder / TOOLS).parent)
    assert not views.is_current(store, folder, manifest)
    assert not briefs.Seen(store, statcache.StatCache(store)).shows("t", manifest.key)
    assert [(f.kind, f.view) for f in verify.verify(store).findings] == [(Kind.EDITED, folder)]


def test_a_stranger_in_a_folder_is_foreign(store: Store) -> None:
    _, folder = shown(store, "config.json", TOOLS)
    for name in ("additional_chat_templates/mine.jinja", "other"):
        (folder / name).write_text("x")
    (folder / "additional_chat_templates" / ".DS_Store").write_text("x")
    found = {(f.kind, f.path.relative_to(folder).as_posix()) for f in verify.verify(store).findings}
    assert found == {(Kind.FOREIGN, "additional_chat_templates/mine.jinja"), (Kind.FOREIGN, "other")}


def test_a_view_with_a_folder_is_replaced_and_removed_as_a_whole(store: Store) -> None:
    shown(store, "config.json", TOOLS)
    _, folder = shown(store, "config.json")
    assert {path.name for path in folder.iterdir()} == {"config.json", views.MANIFEST}
    _, folder = shown(store, TOOLS)
    views.remove(store, folder)
    assert not folder.exists()
    assert not list(store.tmp.iterdir())


def test_a_name_that_is_a_file_and_a_folder_is_refused(store: Store) -> None:
    with pytest.raises(StoreError):
        shown(store, "a", "a/b")
    assert not (store.models / "t").exists()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("a", True),
        ("a/b", True),
        ("a/b/c", False),
        ("/a", False),
        ("a/", False),
        ("../a", False),
        ("a/..", False),
    ],
)
def test_names_of_files(name: str, right: bool) -> None:
    assert is_file_name(name) is right
