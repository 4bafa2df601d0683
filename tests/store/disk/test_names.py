"""Hidden files are nobody's, and names that differ only by case are told apart where they can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builder.errors import SourceMissing, StoreError
from builder.keys import make_key
from builder.scaffold.nearby import look
from builder.sources.base import list_files
from builder.sources.gguf.location import resolve_gguf
from builder.spec.types import Base, PathSource
from builder.store import blobs, briefs, checkouts, pins, records, seals, statcache, views
from builder.store.care import gc, inventory, verify
from builder.store.disk import capability
from builder.store.disk.names import alike, is_hidden
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import FileEntry, Manifest, Record
from tests.tiny import make_base

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def make(store: Store, *names: str) -> Manifest:
    files = []
    for name in names:
        blob = blobs.ingest(store, [name.encode()])
        records.write(store, Record(make_key("block", name), "block", blob))
        files.append(FileEntry(name, blob))
    return Manifest(make_key("t", *names), "target", "t", "2025-01-01T00:00:00Z", tuple(files))


def litter(folder: Path) -> None:
    """What macOS leaves: a companion of every file and folder below, and .DS_Store in each folder."""
    for path in sorted(folder.rglob("*")):
        if not is_hidden(path.name):
            path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("._model-00001-of-00002.safetensors", True),
        (".DS_Store", True),
        (".git", True),
        ("model.safetensors", False),
        ("a._b", False),
    ],
)
def test_hidden(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), None),
        (("a", "b"), None),
        (("a", "a"), None),
        (("tokenizer.json", "b", "Tokenizer.json"), ("tokenizer.json", "Tokenizer.json")),
        (("ß", "SS"), ("ß", "SS")),
    ],
)
def test_alike(names: tuple[str, ...], found: tuple[str, str] | None) -> None:
    assert alike(names) == found


def test_what_macos_leaves_everywhere_in_a_store_changes_nothing(store: Store, tmp_path: Path) -> None:
    manifest = make(store, "model-00001-of-00001.safetensors", "tokenizer.json")
    records.write_manifest(store, manifest)
    views.materialize(store, store.models / "t", manifest)
    checkouts.register(store, tmp_path, [manifest.key])
    pins.pin(store, "t")
    seals.write(store, store.evals / "ab" / f"{'ab' * 32}.json", "{}\n")
    litter(store.root)
    assert (store.models / "t" / "._model-00001-of-00001.safetensors").exists()
    assert views.is_current(store, store.models / "t", manifest)
    assert briefs.Seen(store, statcache.StatCache(store)).shows("t", manifest.key)
    report = verify.verify(store)
    assert report.findings == ()
    found = inventory.survey(store)
    assert found.pinned == {manifest.key}
    assert [need.keys for need in found.needs] == [{manifest.key}]
    assert (len(found.blobs), len(found.records), len(found.views), found.damaged) == (2, 2, 1, ())
    gc.apply_gc(store, gc.plan_gc(found, [manifest.key], gc.Policy(grace_s=0), 1 << 62))
    assert views.is_current(store, store.models / "t", manifest)
    (store.models / "t" / "model-00002.safetensors").write_bytes(b"a stranger that loaders take")
    assert not views.is_current(store, store.models / "t", manifest)
    assert not briefs.Seen(store, statcache.StatCache(store)).shows("t", manifest.key)


def test_what_macos_leaves_in_a_base_is_not_copied(tmp_path: Path) -> None:
    base = Base("b", PathSource(make_base(tmp_path / "base")))
    before = list_files(base, tmp_path / "base")
    litter(tmp_path / "base")
    assert (tmp_path / "base" / "._tokenizer.json").exists()
    assert list_files(base, tmp_path / "base") == before
    assert "tokenizer.json" in {path.name for path in before.copied}


def test_what_macos_leaves_is_not_proposed_as_a_source(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    before = look(tmp_path, tmp_path / "cache")
    assert sorted(base.name for base in before.bases) == ["base", "x"]
    litter(tmp_path)
    assert look(tmp_path, tmp_path / "cache") == before


def test_what_macos_leaves_is_not_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "._model.gguf").write_bytes(APPLE_DOUBLE)
    with pytest.raises(SourceMissing) as caught:
        resolve_gguf(None, tmp_path / "model.gguf", "base.b")
    assert "Did you mean" not in str(caught.value)


def test_mlx_lm_does_not_load_what_macos_leaves(tmp_path: Path) -> None:
    """We rely on its pattern `model*.safetensors`."""
    from mlx_lm.utils import load_model

    make_base(tmp_path / "base", layers=1)
    litter(tmp_path / "base")
    model, _ = load_model(tmp_path / "base", lazy=True)
    assert len(model.layers) == 1


def test_names_that_differ_by_case_are_two_files_or_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make(store, "tokenizer.json", "Tokenizer.json")
    folder = store.models / "t"
    monkeypatch.setattr(capability, "ignores_case", lambda folder: True)
    with pytest.raises(StoreError) as caught:
        views.materialize(store, folder, manifest)
    assert 'models/t: "tokenizer.json" and "Tokenizer.json" differ only by case' in str(caught.value)
    assert not folder.exists()
    monkeypatch.undo()
    if capability.ignores_case(store.tmp):
        pytest.skip("the test's own folder ignores case")
    views.materialize(store, folder, manifest)
    assert (folder / "tokenizer.json").read_bytes() != (folder / "Tokenizer.json").read_bytes()


def test_such_a_base_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder import Project
    from tests.tiny import DECLARATION, make_adapter

    make_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter")
    shutil.copy(tmp_path / "base/config.json", tmp_path / "base/Config.json")
    assert json.loads((tmp_path / "base/Config.json").read_text())
    (tmp_path / "artifacts.toml").write_text(DECLARATION)
    project = Project(tmp_path / "artifacts.toml")
    monkeypatch.setattr(capability, "ignores_case", lambda folder: True)
    with pytest.raises(StoreError, match='"config.json" and "Config.json" differ only by case'):
        project.build("m_4bit")
    assert not list((tmp_path / "store/blobs").glob("*/*"))[1:]  # the base's structure at most
