"""Reading large files past the page cache, where that is faster (O_DIRECT on Linux, F_NOCACHE on macOS).

Copying a base that is larger than memory through the page cache costs the kernel more than the disk does, and
pushes out what others need. What lies in the page cache already is read from there. Whatever the file system
refuses falls back to ordinary reads. The bytes are the same.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from builder.store.disk.direct import ALIGNED, FLAG, switch

PIECE = 1 << 24  # bytes of one read
_MOST = 1024  # parts of one read: what systems allow
_NO_CACHE = getattr(fcntl, "F_NOCACHE", None)
_ENOUGH = 0.9  # the share of a piece in the page cache from which on the cache is faster than the disk


class Uncached:
    """One open file. `close` must be called once."""

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        """direct: past the page cache, where the system can. Raises OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self._direct = direct and bool(FLAG)
        self._mapped: mmap.mmap | None = None
        if direct and not FLAG and _NO_CACHE is not None:
            fcntl.fcntl(self._fd, _NO_CACHE, 1)  # macOS: reads what is cached, and caches nothing more
        if self._direct and self.size:
            self._mapped = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)

    def read(self, buffer: mmap.mmap | memoryview, start: int, count: int) -> int:
        """Reads into `buffer` from `start` on. Both numbers are multiples of ALIGNED, as is where it begins.

        Returns how many bytes there are: fewer at the end of the file. Raises OSError.
        """
        with memoryview(buffer) as whole, whole[:count] as part:
            return self.scatter([part], start)

    def scatter(self, parts: Sequence[memoryview], start: int) -> int:
        """As `read`, into several parts of memory: one after the other, none empty."""
        done, left = 0, list(parts)
        wanted = min(sum(map(len, parts)), self.size - start)
        self._set(self._direct and not self._is_cached(start, wanted))
        while done < wanted:
            try:
                got = self._read(left, start + done)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = False  # a file system that takes the flag and refuses the read
                self._set(False)
                continue
            if got == 0:
                break
            done += got
            left = _without(left, got)
            if done % ALIGNED:  # the rest is not aligned any more
                self._set(False)
        return done

    def fill(self, part: memoryview, start: int) -> bool:
        """Reads all of `part` from `start` on, of a file that is not read past the page cache.

        False where the file is too short. Raises OSError.
        """
        done = 0
        while done < len(part):
            with part[done:] as rest:
                got = self._read([rest], start + done)
            if got == 0:
                return False
            done += got
        return True

    def _read(self, parts: Sequence[memoryview], start: int) -> int:
        os.lseek(self._fd, start, os.SEEK_SET)  # not every macOS has preadv
        return os.readv(self._fd, parts[:_MOST])

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        os.close(self._fd)

    def _set(self, wanted: bool) -> None:
        """A file system without the flag is read the ordinary way."""
        if not switch(self._fd, wanted):
            self._direct = False

    def _is_cached(self, start: int, count: int) -> bool:
        if self._mapped is None or count <= 0:
            return False
        return _resident(self._mapped, start, count) >= _ENOUGH


def _without(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the parts behind their first `count` bytes."""
    for number, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[number + 1 :]]
        count -= len(part)
    return []


def _resident(mapped: mmap.mmap, start: int, count: int) -> float:
    """The share of these bytes of a file that the page cache holds. 0 where nobody can tell."""
    import numpy as np

    ask = _mincore()
    if ask is None:
        return 0.0
    pages = -(-count // mmap.PAGESIZE)
    answer = (ctypes.c_ubyte * pages)()
    begin = np.frombuffer(mapped, np.uint8, 1, start)
    if ask(begin.ctypes.data, count, answer) != 0:
        return 0.0
    return float((np.frombuffer(bytes(answer), np.uint8) & 1).mean())


@cache
def _mincore() -> Any:
    try:
        found = ctypes.CDLL(None).mincore
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return found
