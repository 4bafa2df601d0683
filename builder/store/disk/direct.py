"""Writing large files past the page cache, where the system allows it (O_DIRECT on Linux).

A shard is written once and read much later, if at all: keeping its pages would push out the weights that are
still to be read, and copying into the cache costs more than the disk does (bench/README.md). Anything that
the file system refuses falls back to ordinary writes. The bytes are the same.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from builder.store.disk import buffers, durable

BUFFER = 1 << 22
_SECTOR = 4096  # a multiple of every sector size: what is written past the page cache has this alignment
_LEAST = 1 << 18  # bytes at the end of a file from which on they are written past the page cache too
_MANY = 1 << 20
_SHELF = buffers.Shelf(BUFFER, kept=6)
FLAG = getattr(os, "O_DIRECT", 0)


class DirectWriter:
    """Appends byte views to an empty file. `finish` must be called once; the caller fsyncs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer: mmap.mmap | None = None
        self._used = 0
        self._direct = bool(FLAG)

    def write(self, data: memoryview) -> None:
        """Raises OSError."""
        if self._buffer is None:
            self._buffer = _SHELF.take()  # page-aligned, as O_DIRECT wants it
        done = 0
        while done < len(data):
            count = min(BUFFER - self._used, len(data) - done)
            _copy(self._buffer, self._used, data[done : done + count])
            self._used += count
            done += count
            if self._used == BUFFER:
                self._flush(0, BUFFER, direct=True)
                self._used = 0

    def finish(self) -> None:
        """Writes the rest: what no sector divides, and little, the ordinary way. Raises OSError."""
        whole = self._used // _SECTOR * _SECTOR if self._used >= _LEAST else 0
        if whole:
            self._flush(0, whole, direct=True)
        if whole < self._used:
            self._flush(whole, self._used, direct=False)
        self._used = 0
        self.close()

    def close(self) -> None:
        """Gives the buffer back. After an error a traceback may hold a view of it, which nobody reads."""
        if self._buffer is not None:
            _SHELF.put(self._buffer)
            self._buffer = None

    def _flush(self, start: int, end: int, *, direct: bool) -> None:
        assert self._buffer is not None
        self._set(direct and self._direct)
        with memoryview(self._buffer) as view, view[start:end] as part:
            try:
                durable.write_all(self._fd, part)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = False  # a file system that takes the flag and refuses the write
                self._set(False)
                durable.write_all(self._fd, part)

    def _set(self, wanted: bool) -> None:
        """A file system without the flag is written the ordinary way."""
        if not switch(self._fd, wanted):
            self._direct = False


def _copy(buffer: mmap.mmap, start: int, data: memoryview) -> None:
    """Copies bytes into a buffer. Many bytes by numpy, which lets other threads run meanwhile."""
    if len(data) < _MANY:
        buffer[start : start + len(data)] = data
        return
    import numpy as np

    np.copyto(np.frombuffer(buffer, np.uint8, len(data), start), np.frombuffer(data, np.uint8))


def switch(fd: int, wanted: bool) -> bool:
    """Turns O_DIRECT on or off. False where the file system refuses. Raises OSError."""
    if not FLAG:
        return True
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if bool(flags & FLAG) == wanted:
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | FLAG if wanted else flags & ~FLAG)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
