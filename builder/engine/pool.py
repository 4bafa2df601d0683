"""Large numpy arrays that are used again. Fresh memory is dear: the kernel clears it, page by page."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 1 << 20  # bytes from which on an array is worth keeping
_RANGE = 2  # how many times larger than what is asked for an array may be


@dataclass
class Pool:
    """Gives out an array again as soon as nobody else holds it: a view of an array is a reference to it.

    What was not given out during the last whole turn, and is not held, is let go. One thread uses a pool.
    """

    _arrays: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _used: list[int] = field(default_factory=list)  # the turn in which each was given out last
    _turn: int = 0
    _alone: int = field(default_factory=lambda: _references([np.empty(1, np.uint8)])[0])

    def turn(self) -> None:
        """A block begins: its arrays have the sizes of the last block's, or others."""
        self._turn += 1
        counts = _references(self._arrays)
        kept = [
            number
            for number, count in enumerate(counts)
            if count > self._alone or self._used[number] >= self._turn - 2
        ]
        self._arrays = [self._arrays[number] for number in kept]
        self._used = [self._used[number] for number in kept]

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """As numpy.empty. May be the beginning of a larger array."""
        nbytes = prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
        if nbytes < _SMALL:
            return np.empty(shape, dtype)
        array = self._fitting(nbytes)
        return array[:nbytes].view(dtype).reshape(shape)

    def _fitting(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """The largest free array that is not too large: so the variants of a block share a few of one size.

        Without one, a new array takes the place of a smaller one that is free.
        """
        counts = _references(self._arrays)
        free = [number for number, count in enumerate(counts) if count <= self._alone]
        near = [number for number in free if nbytes // _RANGE <= self._arrays[number].size <= nbytes * _RANGE]
        best = max(near, key=lambda number: self._arrays[number].size, default=len(self._arrays))
        if best == len(self._arrays):
            self._arrays.append(np.empty(nbytes, np.uint8))
            self._used.append(0)
        elif self._arrays[best].size < nbytes:
            self._arrays[best] = np.empty(0, np.uint8)  # let go first
            self._arrays[best] = np.empty(nbytes, np.uint8)
        self._used[best] = self._turn
        return self._arrays[best]


def _references(arrays: list[npt.NDArray[np.uint8]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]
