"""What a pass reads is found by its digest: a name that showed something else in between changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.project.opened import base_folder
from builder.project.project import Project
from builder.project.roots import gc_plan
from builder.store import blobs, records, views
from builder.store.care import verify
from builder.store.care.gc import apply_gc
from builder.store.care.policy import Policy
from builder.store.layout import Store
from builder.store.types import Manifest
from tests.worlds import clean_build, declare, files_of, make, make_gguf, make_source

KINDS = ("gguf", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_switched_there_and_back(tmp_path: Path, kind: str) -> None:
    """The second variant was once made of y's weights and recorded under x's keys."""
    x, y = (make_source(tmp_path / "sources", kind, seed) for seed in (1, 2))
    folder = tmp_path / "project"
    for source in (x, y):
        project, made = make(declare(folder, source), "m_4bit")
        assert made > 0
    project, made = make(declare(folder, x), "m_8bit")
    assert made > 0
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "clean", x, "m_8bit")
    project, made = make(declare(folder, x), "m_4bit")
    assert made == 0
    assert files_of(project, "m_4bit") == clean_build(tmp_path / "clean", x, "m_4bit")
    project, _ = make(declare(folder, y), "m_8bit")
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "other", y, "m_8bit")
    assert verify.verify(project.store).findings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_replaced_in_its_place_and_back(tmp_path: Path, kind: str) -> None:
    make_source(tmp_path / "x", kind, 1)
    make_source(tmp_path / "y", kind, 2)
    (name,) = (path.name for path in (tmp_path / "x").iterdir())
    (other,) = (path.name for path in (tmp_path / "y").iterdir())
    place = tmp_path / name

    def put(source: Path) -> None:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)

    line = f'{"gguf" if kind == "gguf" else "path"} = "{place}"'
    file = declare(tmp_path / "project", line)
    for source in (tmp_path / "x" / name, tmp_path / "y" / other, tmp_path / "x" / name):
        put(source)
        make(file, "m_4bit")
    project, made = make(file, "m_8bit")
    assert made > 0
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "clean", line, "m_8bit")


@pytest.mark.parametrize("kind", KINDS)
def test_two_checkouts_with_one_store_and_one_name_of_a_base(tmp_path: Path, kind: str) -> None:
    x, y = (make_source(tmp_path / "sources", kind, seed) for seed in (1, 2))
    store = tmp_path / "shared"
    ours, theirs = (declare(tmp_path / name, source, store) for name, source in (("a", x), ("b", y)))
    for target in ("m_4bit", "m_8bit"):
        for file, source, clean in ((ours, x, "cleanx"), (theirs, y, "cleany")):
            project, made = make(file, target)
            assert made > 0
            assert files_of(project, target) == clean_build(tmp_path / clean, source, target)
    first, second = Project.load(ours), Project.load(theirs)
    assert first.store.root == second.store.root
    for target in ("m_4bit", "m_8bit"):  # neither took the other's folder
        assert first.is_built(target)
        assert second.is_built(target)
        assert files_of(first, target) != files_of(second, target)
    assert verify.verify(first.store).findings == ()


def test_the_imports_may_be_deleted(tmp_path: Path) -> None:
    x = make_source(tmp_path / "sources", "gguf", 1)
    file = declare(tmp_path / "project", x)
    project, _ = make(file, "m_4bit")
    shutil.rmtree(project.store.bases)
    assert Project.load(file).is_built("m_4bit")
    _, made = make(file, "m_4bit")
    assert made == 0
    shutil.rmtree(project.store.bases, ignore_errors=True)
    project, made = make(file, "m_8bit")
    assert made > 0
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "clean", x, "m_8bit")
    shutil.rmtree(project.store.bases)
    folder = base_folder(project, project.spec.bases["b"])
    assert (folder / "config.json").is_file()
    assert folder.parent == project.store.bases


def test_an_import_beside_a_gc_of_another_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the bytes that the import had found in the store, before the manifest named them."""
    x, y = (make_source(tmp_path / "sources", "gguf", seed) for seed in (1, 2))
    store = tmp_path / "shared"
    ours, theirs = (declare(tmp_path / name, source, store) for name, source in (("a", x), ("b", y)))
    for file in (ours, theirs):
        make(file, "m_4bit")
    make(declare(tmp_path / "a", y, store), "m_4bit")  # nobody declares x now
    project = Project.load(declare(tmp_path / "a", x, store))
    lost = project.sources.imported(project.spec.bases["b"])
    assert lost is not None
    blobs.path(project.store, lost.files[-1].blob.digest).unlink()
    real, collected = records.write_manifest, []

    def beside(store: Store, manifest: Manifest) -> Manifest:
        if manifest.kind == "base":
            other = Project.load(theirs)
            plan = gc_plan(other, Policy(grace_s=0))
            collected.append(apply_gc(other.store, plan))
        return real(store, manifest)

    monkeypatch.setattr(records, "write_manifest", beside)
    project, made = make(tmp_path / "a/artifacts.toml", "m_8bit")
    assert made > 0
    assert collected
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "clean", x, "m_8bit")
    assert not [f for f in verify.verify(project.store).findings if f.kind.is_damage]


@pytest.mark.parametrize(
    "lost", [("blobs", "actions", "targets"), ("blobs",), ("targets",), ("blobs", "targets")]
)
def test_everything_is_lost_but_the_imports(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """The rebuilt target was once called damaged, because an import's view held another time of making."""
    x = make_source(tmp_path / "sources", "gguf", 1)
    file = declare(tmp_path / "project", x)
    project, _ = make(file, "m_4bit")
    before = files_of(project, "m_4bit")
    for name in lost:
        shutil.rmtree(project.store.root / name)
    project, _ = make(file, "m_4bit")
    assert files_of(project, "m_4bit") == before
    assert [f for f in verify.verify(project.store).findings if f.kind.is_damage] == []
    assert project.is_built("m_4bit")


def test_an_edited_import_is_not_read(tmp_path: Path) -> None:
    """Its folder says by name and manifest what it is, and by seals that nobody has written to it."""
    x, y = (make_source(tmp_path / "sources", "gguf", seed) for seed in (1, 2))
    file = declare(tmp_path / "project", x)
    project, _ = make(file, "m_4bit")
    (mine,) = project.store.bases.iterdir()
    make(declare(tmp_path / "project", y), "m_4bit")
    (other,) = (folder for folder in project.store.bases.iterdir() if folder != mine)
    for shard in other.glob("*.safetensors"):  # y's weights in x's import
        (mine / shard.name).unlink()
        shutil.copy2(shard, mine / shard.name)
    file = declare(tmp_path / "project", x)
    project, made = make(file, "m_8bit")
    assert made > 0
    assert files_of(project, "m_8bit") == clean_build(tmp_path / "clean", x, "m_8bit")
    manifest = records.read_manifest(project.store, views.current_key(mine))  # type: ignore[arg-type]
    assert manifest is not None
    assert views.is_current(project.store, mine, manifest)


def test_a_gguf_that_is_replaced_while_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.errors import SourceChanged
    from builder.sources.gguf import importing

    x = make_source(tmp_path / "sources", "gguf", 1)
    file = declare(tmp_path / "project", x)
    real = importing.import_gguf

    def late(path: Path, table: str) -> object:
        yield from real(path, table)
        make_gguf(path, 2)

    monkeypatch.setattr(importing, "import_gguf", late)
    with pytest.raises(SourceChanged):
        make(file, "m_4bit")
    monkeypatch.undo()
    assert not list((tmp_path / "project/store/targets").glob("*"))
    make_gguf(tmp_path / "sources/1.gguf", 1)
    project, _ = make(file, "m_4bit")
    assert files_of(project, "m_4bit") == clean_build(tmp_path / "clean", x, "m_4bit")
