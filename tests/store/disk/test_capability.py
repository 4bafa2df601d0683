"""What a file system can do is tried, once, and leaves nothing behind. Real ones: test_file_systems.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from builder.store.disk import capability


@pytest.fixture(autouse=True)
def untried() -> None:
    capability._tried.cache_clear()


def refuse(source: Path, destination: Path) -> None:
    destination.write_bytes(b"half")
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


@pytest.mark.parametrize(
    ("without", "answer"), [((), True), (("reflink",), True), (("reflink", "hardlink"), False)]
)
def test_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], answer: bool
) -> None:
    for way in without:
        monkeypatch.setattr(capability, way, refuse)
    assert capability.links(tmp_path) is answer
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert capability.links(tmp_path) is answer  # remembered


def test_an_ordinary_folder(tmp_path: Path) -> None:
    assert capability.keeps_modes(tmp_path)
    assert not capability.ignores_case(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_ignores_permissions_or_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(os, "chmod", lambda *arguments, **more: None)
    monkeypatch.setattr(Path, "exists", lambda path: exists(path.with_name(path.name.lower())))
    assert not capability.keeps_modes(tmp_path)
    assert capability.ignores_case(tmp_path)


def test_a_folder_that_cannot_be_tried(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert capability.links(gone)
    assert not capability.keeps_modes(gone)
    assert not capability.ignores_case(gone)


def test_a_sweeper_beside_it_does_not_change_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def swept_once(source: Path, destination: Path) -> None:
        attempts.append(source)
        if len(attempts) == 1:
            source.unlink()
        os.link(source, destination)

    def no_clone(source: Path, destination: Path) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(capability, "reflink", no_clone)
    monkeypatch.setattr(capability, "hardlink", swept_once)
    assert capability.links(tmp_path)
    assert len(attempts) == 2
