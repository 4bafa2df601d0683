"""When two looks at a path saw the same file: what moves its identity, and what its content alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.store.disk.identity import Identity, identity, identity_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    return path


def tick(file: Path) -> None:
    """Until the file system's clock has moved on, so that a change shows in the times."""
    probe = file.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= file.lstat().st_ctime_ns:
        time.sleep(0.001)
        probe.touch()


def test_it_is_the_stat(file: Path) -> None:
    status = file.stat()
    found = identity_of(file)
    assert found == identity(status)
    assert found == Identity(3, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    assert found is not None
    assert found.text == f"3 {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    assert found.content == (3, status.st_mtime_ns, status.st_ino)


def test_two_looks_at_one_file_are_equal(file: Path) -> None:
    before = identity_of(file)
    file.read_bytes()
    assert identity_of(file) == before


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"d")


def rewrite(file: Path) -> None:
    file.write_bytes(b"xyz")


def rewrite_and_hide(file: Path) -> None:
    """The same size, and the mtime put back: the ctime tells."""
    status = file.stat()
    file.write_bytes(b"xyz")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"abc")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


def link(file: Path) -> None:
    file.with_name("link").hardlink_to(file)


def chmod(file: Path) -> None:
    file.chmod(0o444)


def rename(file: Path) -> None:
    file.rename(file.with_name("new")).rename(file)


@pytest.mark.parametrize(
    ("change", "same_content"),
    [
        (append, False),
        (rewrite, False),
        (replace, False),  # another inode
        (rewrite_and_hide, True),
        (link, True),
        (chmod, True),
        (rename, True),
    ],
)
def test_every_change_moves_the_identity(
    file: Path, change: Callable[[Path], None], same_content: bool
) -> None:
    before = identity_of(file)
    tick(file)
    change(file)
    after = identity_of(file)
    assert before is not None
    assert after is not None
    assert after != before
    assert (after.content == before.content) is same_content


def test_a_link_is_followed_or_looked_at(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert identity_of(link) == identity_of(file)
    itself = identity_of(link, follow_symlinks=False)
    assert itself == identity(link.lstat())
    assert itself != identity_of(file)


def test_what_is_not_there_has_none(file: Path) -> None:
    assert identity_of(file.with_name("nothing")) is None
    assert identity_of(file / "below a file") is None
    dangling = file.with_name("dangling")
    dangling.symlink_to(file.with_name("nothing"))
    assert identity_of(dangling) is None
    assert identity_of(dangling, follow_symlinks=False) is not None
