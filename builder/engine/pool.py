"""Large numpy arrays that are used again. Fresh memory is dear: the kernel clears it, page by page."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 1 << 20  # bytes from which on an array is worth keeping


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
            if count > self._alone or self._used[number] >= self._turn - 1
        ]
        self._arrays = [self._arrays[number] for number in kept]
        self._used = [self._used[number] for number in kept]

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """As numpy.empty."""
        sizes = shape if isinstance(shape, tuple) else (shape,)
        nbytes = prod(sizes) * np.dtype(dtype).itemsize
        if nbytes < _SMALL:
            return np.empty(shape, dtype)
        for number, count in enumerate(_references(self._arrays)):
            if count <= self._alone and self._arrays[number].size == nbytes:
                break
        else:
            number = len(self._arrays)
            self._arrays.append(np.empty(nbytes, np.uint8))
            self._used.append(0)
        self._used[number] = self._turn
        return self._arrays[number].view(dtype).reshape(shape)


def _references(arrays: list[npt.NDArray[np.uint8]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]
