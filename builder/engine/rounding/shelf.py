"""Keeps the hidden states of all sequences: in memory up to a limit, and the others on the disk.

What is on the disk is still an array of mlx: a lazy one, which anybody may compute with, and which is then
read whole. The next layer takes only some sequences at a time, and these are read alone. A file loses its
name as soon as it is written, so it ends with its array or with the process, whichever is first.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

NewFile = Callable[[], AbstractContextManager[Path]]  # an empty file, deleted when the context ends


@dataclass(frozen=True)
class _Stored:
    """Float32 values of a shape, in row-major order from `start` of an open file."""

    fd: int
    start: int
    shape: tuple[int, ...]

    def part(self, some: slice) -> mx.array:
        first, stop, _ = some.indices(self.shape[0])
        values = np.empty((stop - first, *self.shape[1:]), np.float32)
        row = values[:1].nbytes
        left, at = memoryview(values.data).cast("B"), self.start + first * row
        while left:
            data = os.pread(self.fd, min(len(left), 1 << 24), at)
            if not data:
                raise OSError("a file of hidden states is shorter than it was written")
            left[: len(data)] = data
            left, at = left[len(data) :], at + len(data)
        return mx.array(values)


@dataclass
class Shelf:
    """`limit`: how many bytes may stay in memory. `new_file` None: everything stays there."""

    new_file: NewFile | None = None
    limit: int = 0
    held: int = 0  # bytes in memory now
    stored: int = 0  # bytes that went to the disk, in all
    _stored: dict[int, _Stored] = field(default_factory=dict)  # by id of the array

    def holds(self, leaf: Any) -> bool:
        """Whether a value is an array that is on the disk."""
        return id(leaf) in self._stored

    def part(self, array: mx.array, some: slice) -> mx.array:
        """Some sequences of an array along its first dimension."""
        kept = self._stored.get(id(array))
        return array[some] if kept is None else kept.part(some)

    def room_for(self, piece: mx.array, sequences: int) -> bool:
        """Whether an array of so many sequences may stay in memory. `piece`: some of them."""
        needed = piece.nbytes // piece.shape[0] * sequences
        return self.new_file is None or self.held + needed <= self.limit

    def note(self, array: mx.array) -> None:
        """Counts an array that stays in memory, until it is gone."""
        nbytes = array.nbytes
        self.held += nbytes
        weakref.finalize(array, self._gone, nbytes)

    def _gone(self, nbytes: int) -> None:
        self.held -= nbytes

    def grow(self, shape: tuple[int, ...]) -> Growing:
        """A new array on the disk, of `shape`."""
        assert self.new_file is not None
        return Growing(self, shape, self.new_file)

    def put(self, array: mx.array, stored: _Stored) -> None:
        self._stored[id(array)] = stored
        self.stored += array.nbytes
        weakref.finalize(array, self._let_go, id(array))

    def _let_go(self, number: int) -> None:
        os.close(self._stored.pop(number).fd)


class Growing:
    """An array that is being written, some sequences after the other."""

    def __init__(self, shelf: Shelf, shape: tuple[int, ...], new_file: NewFile) -> None:
        self._shelf, self._shape = shelf, shape
        self._open = ExitStack()
        self._path = self._open.enter_context(new_file())
        self._file = self._open.enter_context(self._path.open("wb"))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def add(self, some: Sequence[mx.array]) -> None:
        for piece in some:
            values = np.ascontiguousarray(np.array(piece, copy=False))
            self._file.write(memoryview(values.data).cast("B"))

    def done(self) -> mx.array:
        """The array. Its file loses its name."""
        self._file.flush()
        array: Any = mx.load(str(self._path), format="npy")
        fd = os.open(self._path, os.O_RDONLY)
        self._open.close()
        self._shelf.put(array, _Stored(fd, self._start, self._shape))
        made: mx.array = array
        return made

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
