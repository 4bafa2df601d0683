"""The order of batches: that of mlx_lm.tuner.trainer.iterate_batches, as a value that can be stored.

mlx-lm draws every order from numpy's global generator, those of the validation batches too. So this class
draws in the same places. A run of mlx_lm.lora with the same seed sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from builder.training.data import Row

_PAD_TO = 32


class Order:
    """Endless batches of row numbers: all of them in a random order, again and again."""

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: int) -> None:
        self.batches = batches_of(rows, batch_size)
        self._random = np.random.RandomState(seed)
        self._left: list[int] = []

    def take(self) -> tuple[int, ...]:
        """The rows of the next batch."""
        if not self._left:
            self._left = self._random.permutation(len(self.batches)).tolist()
        return self.batches[self._left.pop(0)]

    def draw(self, number: int) -> list[int]:
        """An order of so many other things."""
        drawn: list[int] = self._random.permutation(number).tolist()
        return drawn

    @property
    def state(self) -> dict[str, Any]:
        """All that decides what comes next, as JSON values."""
        kind, keys, position, gauss, cached = self._random.get_state(legacy=True)
        return {"random": [kind, np.asarray(keys).tolist(), position, gauss, cached], "left": self._left}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where another Order of the same rows was."""
        kind, keys, position, gauss, cached = state["random"]
        self._random.set_state((kind, np.array(keys, np.uint32), position, gauss, cached))
        self._left = list(state["left"])


def batches_of(rows: Sequence[Row], size: int) -> tuple[tuple[int, ...], ...]:
    """The rows of each batch. The last rows are in no batch, where they do not fill one."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].width)
    return tuple(tuple(order[at : at + size]) for at in range(0, len(order) - size + 1, size))


def padded(rows: Sequence[Row], max_length: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A batch as mlx-lm pads and cuts it: tokens, and for each row where learning begins and ends."""
    lengths = [min(len(row.tokens), max_length) for row in rows]
    longest = max(len(row.tokens) for row in rows)
    width = min(1 + _PAD_TO * ((longest + _PAD_TO - 1) // _PAD_TO), max_length)
    tokens = np.zeros((len(rows), width), np.int32)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[at, :length] = row.tokens[:length]
    return tokens, np.array([[row.offset, length] for row, length in zip(rows, lengths, strict=True)])
