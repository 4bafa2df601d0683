"""Writes that survive power loss, and the one place where the store's OSErrors become StoreErrors.

The order everywhere: bytes to a temporary file, fsync the file, rename, fsync the folder.

On macOS fsync leaves the bytes in the drive's cache, in any order. F_FULLFSYNC empties that cache. It takes
5 to 20 ms, whatever was written. F_BARRIERFSYNC only keeps the order: what is handed over later never gets
to the medium before what was handed over earlier. `order_only` asks for that. It is enough for blobs and
records, which are made again when the last of them are lost. The next full flush makes them durable.
Other systems have no such call. There `order_only` is an fsync like every other.
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
_NO_MODES = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_WRITE_SLICE = 1 << 26
_F_BARRIERFSYNC = 85  # sys/fcntl.h of macOS; Python names F_FULLFSYNC only


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


def write_all(fd: int, data: memoryview, at: int | None = None) -> None:
    """Writes every byte of a flat byte view: from `at` on, else behind what was written. Raises OSError."""
    for start in range(0, len(data), _WRITE_SLICE):
        part = data[start : start + _WRITE_SLICE]
        while len(part):
            count = os.write(fd, part) if at is None else os.pwrite(fd, part, at)
            at = None if at is None else at + count
            part = part[count:]


def sync_file(fd: int, *, order_only: bool = False) -> None:
    """The file's bytes are on the medium when this returns. Raises OSError.

    order_only: they are there before anything that is written after this returned.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        for command in (_F_BARRIERFSYNC, full) if order_only else (full,):
            try:
                fcntl.fcntl(fd, command)
                return
            except OSError as error:  # network and some external file systems do not know it
                if error.errno in (errno.EIO, *_FULL):
                    raise
    os.fsync(fd)


def sync_folder(folder: Path, *, order_only: bool = False) -> None:
    """The names in the folder are on the medium when this returns; `order_only` as above. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file(fd, order_only=order_only)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without fsync on folders
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path, *, order_only: bool = False) -> None:
    """The folder and its parents exist, durably; `order_only` as above. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent, order_only=order_only)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent, order_only=order_only)


def move_into_place(staged: Path, final: Path, *, order_only: bool = False) -> None:
    """Renames an already synced file over `final` and syncs the folder. Raises OSError."""
    make_folder(final.parent, order_only=order_only)
    staged.rename(final)
    sync_folder(final.parent, order_only=order_only)


def set_mode(file: int | Path, mode: int) -> None:
    """Permission bits, where the file system keeps any: they are a courtesy. Raises OSError."""
    try:
        os.chmod(file, mode)  # noqa: PTH101 a descriptor has no Path
    except OSError as error:  # FAT, exFAT and some network disks
        if error.errno not in _NO_MODES:
            raise


def replace_text(file: Path, text: str) -> None:
    """Writes a file for people as a whole: a reader sees the former text or this one. Raises OSError."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
