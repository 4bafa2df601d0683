"""Files and folders that are being written: each is locked by its writer, so an unlocked one is garbage.

The lock (flock) is held on the file or folder itself and goes with the process, however it dies. Whoever
gets the lock of something in tmp/ may delete it; a writer that finds it lost the race starts again.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builder.store.disk import durable
from builder.store.layout import Store

_NAME = re.compile(r"[0-9a-f]{32}").fullmatch


@dataclass(frozen=True)
class Staged:
    """A temporary file, open for writing and locked."""

    path: Path
    fd: int

    def keep_as(self, final: Path, mode: int = 0o644, *, order_only: bool = False) -> None:
        """Makes the bytes durable and then visible under the name `final`, atomically. Raises OSError.

        order_only: see `durable`.
        """
        durable.set_mode(self.fd, mode)
        durable.sync_file(self.fd, order_only=order_only)
        durable.move_into_place(self.path, final, order_only=order_only)


@contextmanager
def new_file(store: Store) -> Iterator[Staged]:
    """A locked temporary file; deleted at the end unless `keep_as` gave it a name. Raises StoreError."""
    with durable.explained(store.root):
        staged = _locked_file(store)
    try:
        yield staged
    finally:
        with suppress(OSError):
            staged.path.unlink(missing_ok=True)
        os.close(staged.fd)


@contextmanager
def new_folder(store: Store) -> Iterator[Path]:
    """A locked temporary folder; whatever lies at its path at the end is deleted. Raises StoreError."""
    with durable.explained(store.root):
        path, fd = _locked_folder(store)
    try:
        yield path
    finally:
        delete(path)
        os.close(fd)


def new_name(store: Store) -> Path:
    """A free path in tmp/, for something that is renamed there to be deleted."""
    durable.make_folder(store.tmp)
    return store.tmp / os.urandom(16).hex()


def delete(path: Path) -> None:
    """Deletes a file, a link (never what it points at) or a folder; what cannot be deleted stays garbage."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep(store: Store) -> int:
    """Deletes what dead processes left in tmp/; returns how many bytes that was. Never raises OSError."""
    freed = 0
    with suppress(OSError):
        for entry in _named_by_us(store):
            freed += _sweep_one(entry)
    return freed


def orphans(store: Store) -> tuple[Path, ...]:
    """What `sweep` would delete now."""
    found = []
    with suppress(OSError):
        for entry in _named_by_us(store):
            fd = try_lock(entry)
            if fd is not None:
                os.close(fd)
                found.append(entry)
    return tuple(found)


def _named_by_us(store: Store) -> list[Path]:
    """What lies in tmp/ under a name that `new_name` gives: anything else belongs to somebody else."""
    return sorted(entry for entry in store.tmp.iterdir() if _NAME(entry.name))


def _sweep_one(path: Path) -> int:
    fd = try_lock(path)
    if fd is None:
        return 0
    try:
        size = size_of(path)
        delete(path)
        return size
    finally:
        os.close(fd)


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder that no other name holds; 0 for what vanished."""
    total = 0
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return sum(size_of(child) for child in path.iterdir())
        if status.st_nlink == 1:
            total = status.st_size
    return total


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None when somebody else does or it cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _owned(fd: int, path: Path) -> bool:
    """Locks what was just created; False when a sweeper was faster and deletes it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can sweep there either
        return True
    return path.exists()


def _locked_file(store: Store) -> Staged:
    while True:
        path = new_name(store)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if _owned(fd, path):
            return Staged(path, fd)
        os.close(fd)


def _locked_folder(store: Store) -> tuple[Path, int]:
    while True:
        path = new_name(store)
        path.mkdir()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if _owned(fd, path):
            return path, fd
        os.close(fd)
