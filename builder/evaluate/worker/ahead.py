"""Reads the weights of a model from its files, on a thread of its own, ahead of their use.

A weight is read past the page cache, straight into memory that is used again for later weights. So nothing is
copied, and the kernel hands out little fresh memory.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from builder.engine.stored import Array, Held, Place, Stored, matrices
from builder.errors import SourceInvalid, unreadable
from builder.store.disk import buffers
from builder.store.disk.direct import ALIGNED
from builder.store.disk.uncached import PIECE, Uncached

STACKS = 2  # as many bytes as the largest weight has so often may be read before anybody asks for them
# A weight that has more than this part of the bytes of the largest is read into memory that is kept.
_LARGE = 8
_NAMES = {mx.bfloat16: np.uint16, mx.float16: np.uint16, mx.float32: np.float32}
_NAMES |= {mx.uint8: np.uint8, mx.uint32: np.uint32}
_SPREAD = 1.25  # how many times larger than a weight the memory may be that it is read into


class Ahead:
    """The weights that have places, in the order in which they are wanted.

    A context: leaving it ends the thread. A weight is in memory from some time before `take` to `drop`.
    """

    def __init__(self, weights: Mapping[int, Stored]) -> None:
        self._weights = {n: each for n, each in weights.items() if each.places and _known(each)}
        self._order = list(self._weights)
        self._ends = list(accumulate(map(_space, self._weights.values())))
        self._largest = max(map(_space, self._weights.values()), default=0)
        self._room: dict[int, mmap.mmap] = {}
        self._free: list[mmap.mmap] = []
        self._whole: set[int] = set()
        self._dropped: set[int] = set()
        self._next, self._upto = 0, STACKS * self._largest  # what may be read by now: a weight, and bytes
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._files: dict[Path, Uncached] = {}
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __contains__(self, number: int) -> bool:
        return number in self._weights and number not in self._dropped

    def take(self, number: int) -> Held:
        """The matrices of a weight, once they are read. They are there until `drop`. Raises BuildError."""
        with self._changed:
            at = self._order.index(number)
            self._next = max(self._next, at + 1)
            self._upto = max(self._upto, self._ends[at] + STACKS * self._largest)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or number in self._whole)
            if self._error is not None:
                raise self._error
            return _held(self._weights[number], self._room[number])

    def drop(self, number: int) -> None:
        """Nobody needs a weight any more. Its memory is used again."""
        with self._changed:
            self._dropped.add(number)
            if number in self._whole:
                self._whole.discard(number)
                room = self._room.pop(number)
                if len(room) > self._largest // _LARGE:
                    self._free.append(room)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for at, number in enumerate(self._order):
                with self._changed:
                    self._changed.wait_for(lambda at=at: self._closed or self._may_read(at))  # type: ignore[misc]
                    if self._closed:
                        return
                    if number in self._dropped:
                        continue
                    room = self._room[number] = self._memory(_space(self._weights[number]))
                self._read(self._weights[number], room)
                with self._changed:
                    self._whole.add(number)
                    if number in self._dropped:
                        self.drop(number)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            for file in self._files.values():
                file.close()

    def _may_read(self, at: int) -> bool:
        return at <= self._next or self._ends[at] <= self._upto

    def _memory(self, nbytes: int) -> mmap.mmap:
        """Memory that is free and not much too large, or new memory. One that does not fit is kept."""
        fitting = [each for each in self._free if nbytes <= len(each) <= nbytes * _SPREAD]
        if fitting:
            self._free.remove(fitting[0])
            return fitting[0]
        if nbytes > self._largest // _LARGE:
            del self._free[:-1]
        return buffers.new(nbytes)

    def _read(self, stored: Stored, room: mmap.mmap) -> None:
        with memoryview(room) as whole:
            for place, at in _slots(stored):
                file = self._file(place.path)
                start = place.start // ALIGNED * ALIGNED
                for begin in range(start, place.end, PIECE):
                    if self._closed:
                        return
                    count = min(PIECE, -(-(place.end - begin) // ALIGNED) * ALIGNED)
                    with whole[at + begin - start : at + begin - start + count] as piece:
                        self._fill(file, place, piece, begin, count)

    def _fill(self, file: Uncached, place: Place, piece: memoryview, begin: int, count: int) -> None:
        try:
            got = file.read(piece, begin, count)
        except OSError as error:
            raise unreadable("model", place.path, error) from error
        if got < min(count, place.end - begin):
            raise SourceInvalid(table="model", path=place.path, what="became shorter while it was read")

    def _file(self, path: Path) -> Uncached:
        if path not in self._files:
            try:
                self._files[path] = Uncached(path)
            except OSError as error:
                raise unreadable("model", path, error) from error
        return self._files[path]


def _known(stored: Stored) -> bool:
    """Whether numpy knows the numbers of all arrays."""
    return all(array.dtype in _NAMES for array in stored.arrays)


def _slots(stored: Stored) -> list[tuple[Place, int]]:
    """Where in memory each place of a weight begins, its first bytes as far behind a page as in its file."""
    found, at = [], 0
    for place in (place for places in stored.places for place in places):
        found.append((place, at))
        at += -(-(place.start % ALIGNED + place.end - place.start) // ALIGNED) * ALIGNED
    return found


def _space(stored: Stored) -> int:
    (last, at) = _slots(stored)[-1]
    return at + -(-(last.start % ALIGNED + last.end - last.start) // ALIGNED) * ALIGNED


def _held(stored: Stored, room: mmap.mmap) -> Held:
    """The matrices of a weight where they are in memory."""
    slots = iter(_slots(stored))
    found: list[list[Array]] = []
    for array, places in zip(stored.arrays, stored.places, strict=True):
        kind: Any = _NAMES[array.dtype]
        shape = array.shape if len(places) == 1 else array.shape[1:]
        held: list[Array] = []
        for place, at in (next(slots) for _ in places):
            count = (place.end - place.start) // np.dtype(kind).itemsize
            held += matrices(np.frombuffer(room, kind, count, at + place.start % ALIGNED).reshape(shape))
        found.append(held)
    return found
