"""The store's folder: made once, versioned, readable when nothing can be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.store import format as store_format
from builder.store import tmp
from builder.store.care.inventory import survey
from builder.store.care.verify import verify
from builder.store.format import StoreGone


def test_a_new_store_has_a_version_and_little_else(tmp_path: Path) -> None:
    store = store_format.open_store(tmp_path / "deep" / "store")
    assert store.version.read_text() == "2\n"
    assert sorted(p.name for p in store.root.iterdir()) == [".gitignore", "locks", "tmp", "version"]


def test_a_new_store_is_ignored_by_git(tmp_path: Path) -> None:
    store = store_format.open_store(tmp_path / "store")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    seen = subprocess.run(
        ["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert seen.stdout == ""
    report = verify(store)
    assert not report.findings
    assert not survey(store).damaged
    assert (store.root / ".gitignore").read_text() == "*\n"


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("mine", ["thesis.txt", "tmp/notes.txt", "models/phase8_5bit/weights.bin", ".hidden"])
def test_a_store_is_only_made_in_a_folder_of_its_own(tmp_path: Path, mine: str) -> None:
    """[store] path = "." once emptied a person's tmp/ and replaced a folder in models/."""
    file = tmp_path / mine
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(StoreError, match="it is not a store and not empty"):
        store_format.open_store(tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("left", [".gitkeep", ".gitignore", ".DS_Store", ".version.4711"])
def test_what_git_or_a_desktop_or_a_dead_run_left_is_as_good_as_empty(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("x")
    assert store_format.open_store(tmp_path).version.is_file()
    assert (tmp_path / left).exists() == (left != ".version.4711")


def test_a_store_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(StoreGone, match="it is gone"):
        store_format.open_store(tmp_path / "store", create=False)
    with pytest.raises(StoreGone, match="mounted/disk does not exist"):
        store_format.open_store(tmp_path / "mounted" / "disk" / "store", parents=False)
    assert listing(tmp_path) == {}


def test_a_link_to_a_disk_that_is_not_mounted_is_no_new_store(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "mounted" / "store")
    with pytest.raises(StoreGone, match="it is a link to .*mounted/store, which is not there"):
        store_format.open_store(tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_nothing_is_swept_that_has_a_name_of_somebody_else(tmp_path: Path) -> None:
    store = store_format.open_store(tmp_path / "store")
    (store.tmp / "thesis").mkdir()
    (store.tmp / "thesis" / "chapter1").write_text("mine")
    (store.tmp / ("a" * 32)).write_text("left by a dead run")
    assert tmp.sweep(store) == len("left by a dead run")
    assert (store.tmp / "thesis" / "chapter1").read_text() == "mine"


def test_opening_an_existing_store_writes_nothing(tmp_path: Path) -> None:
    store_format.open_store(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    root = tmp_path.stat().st_mtime_ns
    store_format.open_store(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert tmp_path.stat().st_mtime_ns == root


@pytest.mark.parametrize("text", ["3\n", "", "1", "one\n", "1\n\0"])
def test_an_unknown_version_is_named_and_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "version").write_text(text)
    with pytest.raises(StoreError) as caught:
        store_format.open_store(tmp_path)
    shown = text.strip()
    assert str(caught.value) == (
        f"store {tmp_path}: its format is {shown!r}, but this program reads 2.\n"
        "  Use the program version that wrote it, or declare another [store] path."
    )


def test_an_older_version_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    store_format.open_store(tmp_path)
    (tmp_path / "version").write_text("1\n")
    monkeypatch.setattr(store_format, "FORMAT", 3)
    monkeypatch.setattr(
        store_format,
        "MIGRATIONS",
        {1: lambda root: steps.append("1->2"), 2: lambda root: steps.append("2->3")},
    )
    store_format.open_store(tmp_path)
    store_format.open_store(tmp_path)
    assert steps == ["1->2", "2->3"]
    assert (tmp_path / "version").read_text() == "3\n"


def test_a_file_in_the_place_of_the_store_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError):
        store_format.open_store(tmp_path / "store")


def test_importing_the_store_loads_nothing_slow() -> None:
    slow = "filelock", "asyncio", "reflink_copy", "ctypes", "mlx", "numpy"
    code = (
        "import sys; import builder.store.blobs, builder.store.views, builder.store.locks, "
        "builder.store.care.gc, "
        "builder.store.statcache, builder.store.care.verify; "
        f"print([m for m in {slow!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
