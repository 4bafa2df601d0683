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
from contextlib import suppress

from builder.store.disk import durable

BUFFER = 1 << 22  # a multiple of every sector size; smaller files are written the ordinary way
_MANY = 1 << 20
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
            self._buffer = mmap.mmap(-1, BUFFER)  # page-aligned, as O_DIRECT wants it
        done = 0
        while done < len(data):
            count = min(BUFFER - self._used, len(data) - done)
            _copy(self._buffer, self._used, data[done : done + count])
            self._used += count
            done += count
            if self._used == BUFFER:
                self._flush(BUFFER)

    def finish(self) -> None:
        """Writes the rest, whose length no sector divides, the ordinary way. Raises OSError."""
        try:
            if self._used:
                self._set(False)
                self._flush(self._used)
        finally:
            self.close()

    def close(self) -> None:
        """Lets the buffer go; after an error its traceback may hold a view, and frees it when it goes."""
        if self._buffer is not None:
            with suppress(BufferError):
                self._buffer.close()
            self._buffer = None

    def _flush(self, count: int) -> None:
        assert self._buffer is not None
        if count == BUFFER:
            self._set(self._direct)
        with memoryview(self._buffer) as view, view[:count] as part:
            try:
                durable.write_all(self._fd, part)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = False  # a file system that takes the flag and refuses the write
                self._set(False)
                durable.write_all(self._fd, part)
        self._used = 0

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
