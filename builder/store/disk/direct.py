"""Writing large files past the page cache, where the system allows it (O_DIRECT on Linux).

A shard is written once and read much later, if at all: keeping its pages would push out the weights that are
still to be read, and copying into the cache costs more than the disk does (bench/README.md). Anything that
the file system refuses falls back to ordinary writes. The bytes are the same.

A few threads write, so that whoever made the bytes can hash the next ones meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

from builder.store.disk import buffers, durable

BUFFER = 1 << 22  # bytes of one write
ALIGNED = 4096  # a multiple of every sector size: what is written past the page cache has this alignment
FLAG = getattr(os, "O_DIRECT", 0)
_LEAST = 1 << 18  # bytes at the end of a file from which on they are written past the page cache too
_MANY = 1 << 20  # bytes from which on a part of a file may be written from where it lies in memory
_WRITES = 2  # at a time, in a process: more take turns with the reads of a pass too often
_OPEN = 2  # buffers of one file that are on their way
_SHELF = buffers.Shelf(BUFFER, kept=10)


class DirectWriter:
    """Writes byte views to an empty file, one behind the other.

    `finish` must be called once, and `close` after every error; the caller fsyncs.
    """

    def __init__(self, fd: int, *, lasting: bool = False) -> None:
        """lasting: views stay as they are until `finish` or `close` returns. Then large ones are not copied,
        where they lie as far behind the begin of a page in memory as in the file.
        """
        self._fd = os.dup(fd)  # bytes on their way must never meet another file, whatever interrupts us
        self._lasting = lasting
        self._direct = bool(FLAG)
        self._buffer: mmap.mmap | None = None
        self._at, self._used = 0, 0  # where the bytes of the buffer begin in the file, and how many there are
        self._flags = Lock()
        self._going: list[Future[None]] = []  # writes on their way
        self._filled: list[Future[None]] = []  # the last of them whose bytes lie in buffers

    def write(self, data: memoryview) -> None:
        """Raises OSError, also that of an earlier write."""
        first = self._first(data)
        self._append(data[:first])
        if first == len(data):
            return
        if self._used:
            self._send_buffer()
        last = first + (len(data) - first) // ALIGNED * ALIGNED
        self._send(data[first:last], self._at)
        self._at += last - first
        self._append(data[last:])

    def finish(self) -> None:
        """Writes the rest: what no sector divides, and little, the ordinary way. Raises OSError."""
        for going in self._going:
            going.result()
        whole = self._used // ALIGNED * ALIGNED if self._used >= _LEAST else 0
        if self._buffer is not None:
            with memoryview(self._buffer) as view:
                with view[:whole] as part:
                    self._past_cache(part, self._at)
                with view[whole : self._used] as part:
                    if len(part):
                        self._set(False)
                    durable.write_all(self._fd, part, self._at + whole)
        self.close()

    def close(self) -> None:
        """Waits for what is on its way, and gives everything back. The second call does nothing."""
        for going in self._going:
            going.cancel()
        wait(self._going)
        self._going = []
        if self._buffer is not None:
            _SHELF.put(self._buffer)
            self._buffer = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _first(self, data: memoryview) -> int:
        """The bytes of `data` behind which the rest is written from where it lies. All of them: it is not."""
        if not self._lasting or len(data) < _MANY:
            return len(data)
        if not self._direct:
            return 0
        first = -(self._at + self._used) % ALIGNED
        return len(data) if (_address(data) + first) % ALIGNED else first

    def _append(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            if self._buffer is None:
                self._buffer = _SHELF.take()  # page-aligned, as O_DIRECT wants it
            count = min(BUFFER - self._used, len(data) - done)
            _copy(self._buffer, self._used, data[done : done + count])
            self._used += count
            done += count
            if self._used == BUFFER:
                self._send_buffer()

    # -- writes on their way -------------------------------------------------------------------------------

    def _send_buffer(self) -> None:
        """The bytes of the buffer are written, and the next ones get another buffer."""
        if len(self._filled) == _OPEN:
            self._filled.pop(0).result()
        buffer, used, at = self._buffer, self._used, self._at
        assert buffer is not None
        self._buffer, self._used, self._at = None, 0, at + used
        self._filled.append(self._send(memoryview(buffer)[:used], at, buffer))

    def _send(self, data: memoryview, at: int, buffer: mmap.mmap | None = None) -> Future[None]:
        """Raises the errors of those that have ended."""
        self._going = [going for going in self._going if not going.done() or going.result()]

        def write() -> None:
            try:
                self._past_cache(data, at)
            finally:
                if buffer is not None:
                    _SHELF.put(buffer)

        self._going.append(_threads().submit(write))
        return self._going[-1]

    def _past_cache(self, data: memoryview, at: int) -> None:
        """Raises OSError."""
        self._set(self._direct and len(data) % ALIGNED == 0)
        try:
            durable.write_all(self._fd, data, at)
        except OSError as error:
            if not FLAG or error.errno != errno.EINVAL:
                raise
            self._direct = False  # a file system that takes the flag and refuses the write
            self._set(False)
            durable.write_all(self._fd, data, at)

    def _set(self, wanted: bool) -> None:
        """A file system without the flag is written the ordinary way."""
        with self._flags:
            if not switch(self._fd, wanted and self._direct):
                self._direct = False


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WRITES, "disk")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def _address(data: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(data, np.uint8).ctypes.data)


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
