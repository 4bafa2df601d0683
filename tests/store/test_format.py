"""The store's folder: made once, versioned, readable when nothing can be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.store import format as store_format
from builder.store.care.inventory import survey
from builder.store.care.verify import verify


def test_a_new_store_has_a_version_and_little_else(tmp_path: Path) -> None:
    store = store_format.open_store(tmp_path / "deep" / "store")
    assert store.version.read_text() == "1\n"
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


def test_a_folder_that_holds_something_is_not_hidden_from_git(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    store_format.open_store(tmp_path)
    assert not (tmp_path / ".gitignore").exists()


def test_opening_an_existing_store_writes_nothing(tmp_path: Path) -> None:
    store_format.open_store(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    root = tmp_path.stat().st_mtime_ns
    store_format.open_store(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert tmp_path.stat().st_mtime_ns == root


@pytest.mark.parametrize("text", ["2\n", "", "1", "one\n", "1\n\0"])
def test_an_unknown_version_is_named_and_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "version").write_text(text)
    with pytest.raises(StoreError) as caught:
        store_format.open_store(tmp_path)
    shown = text.strip()
    assert str(caught.value) == (
        f"store {tmp_path}: its format is {shown!r}, but this program reads 1.\n"
        "  Use the program version that wrote it, or declare another [store] path."
    )


def test_an_older_version_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    store_format.open_store(tmp_path)
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
