"""A base that is larger than what the page cache keeps is hashed past it, to the same digests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from builder.build import feed, hashing
from builder.build.hashing import hash_files
from builder.console.events import Event, Hashing
from builder.errors import SourceInvalid
from builder.project.project import Project
from builder.store import blobs, statcache
from tests.tiny import make_base

DECLARATION = """[base.b]
path = "base"

[variant.4bit]
bits = 4

[model.m]
base = "b"
variants = ["4bit"]
"""
PIECE = 1 << 16
SOON = 20_000_000  # nanoseconds: how old a file must be for its stat to tell that it did not change


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a base that counts as large."""
    monkeypatch.setattr(hashing.peaks, "stays_cached", lambda size: False)
    monkeypatch.setattr(statcache, "RACY_NS", SOON)
    monkeypatch.setattr("builder.sources.catalog.HASH_AT_ONCE", 0)  # what is smaller needs no task
    monkeypatch.setattr(hashing, "PIECE", PIECE)
    monkeypatch.setattr(feed, "PIECE", PIECE)
    make_base(tmp_path / "base")
    (tmp_path / "artifacts.toml").write_text(DECLARATION)
    time.sleep(2 * SOON / 1e9)
    return Project.load(tmp_path / "artifacts.toml")


def test_the_same_digests_with_progress(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    files = project.sources.files(project.spec.bases["b"])
    expected = {path: blobs.hash_file(path).digest for path in files}
    monkeypatch.setattr(blobs, "hash_file", _only_small)
    seen: list[Event] = []
    hash_files(project, files, "base.b", seen.append)
    assert {path: project.sources.known_digest(path) for path in files} == expected
    large = max(files, key=lambda path: path.stat().st_size)
    done = [event.done for event in seen if isinstance(event, Hashing) and event.what == large.name]
    assert done == sorted(done)
    assert len(done) > 1
    assert done[-1] == large.stat().st_size
    again = Project.load(project.spec.file)
    assert {path: again.sources.known_digest(path) for path in files} == expected  # kept for the next run


def test_a_file_that_changes_meanwhile_has_no_digest(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = project.sources.files(project.spec.bases["b"])
    large = max(files, key=lambda path: path.stat().st_size)

    def change(event: Event) -> None:
        if isinstance(event, Hashing) and event.what == large.name and event.done < 2 * PIECE:
            with large.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"x")

    hash_files(project, files, "base.b", change)
    assert project.sources.known_digest(large) is None


def test_a_file_that_is_gone(project: Project) -> None:
    files = project.sources.files(project.spec.bases["b"])
    large = max(files, key=lambda path: path.stat().st_size)
    opened = feed.Uncached

    def gone(path: Path, *, direct: bool) -> object:
        large.unlink(missing_ok=True)
        return opened(path, direct=direct)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "Uncached", gone)
        with pytest.raises(SourceInvalid, match=r"base\.b.*cannot be read"):
            hash_files(project, files, "base.b", lambda event: None)


def _only_small(path: Path, told: object = None) -> object:
    assert path.stat().st_size < PIECE, "a large file was read through the page cache"
    return _HASH(path)


_HASH = blobs.hash_file
