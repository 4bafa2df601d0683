"""Writes that survive power loss, and the one place where the store's OSErrors become StoreErrors.

The order everywhere: bytes to a temporary file, fsync the file, rename, fsync the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.errors import StoreError, StoreFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRITE_SLICE = 1 << 26


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError raised inside into a StoreError about `path`.

    Raises StoreFull when the device is full or a quota is used up, else StoreError.
    """
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        place = f" ({error.filename})" if error.filename else ""
        kind = StoreFull if error.errno in _FULL else StoreError
        raise kind(path=path, what=f"{what}{place}") from error


def write_all(fd: int, data: memoryview) -> None:
    """Writes every byte of a flat byte view. Raises OSError."""
    for start in range(0, len(data), _WRITE_SLICE):
        part = data[start : start + _WRITE_SLICE]
        while len(part):
            part = part[os.write(fd, part) :]


def sync_file(fd: int) -> None:
    """The file's bytes are on the medium when this returns (F_FULLFSYNC on macOS). Raises OSError."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(fd, full)
            return
        except OSError as error:  # network and some external file systems do not know it
            if error.errno in (errno.EIO, *_FULL):
                raise
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """The names in the folder are on the medium when this returns. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without fsync on folders
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """The folder and its parents exist, durably. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def move_into_place(staged: Path, final: Path) -> None:
    """Renames an already synced file over `final` and syncs the folder. Raises OSError."""
    make_folder(final.parent)
    staged.rename(final)
    sync_folder(final.parent)


def replace_text(file: Path, text: str) -> None:
    """Writes a file for people as a whole: a reader sees the former text or this one. Raises OSError."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
