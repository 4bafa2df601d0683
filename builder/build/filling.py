"""Hashes what was read of a file, and puts it into place: into arrays, or as rows before whoever computes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import blake3

from builder.build.arrays import Batch, BlockArrays
from builder.build.windows import Window
from builder.keys import Digest, hash_threads
from builder.weights.pieces import Piece, Rows, Span

if TYPE_CHECKING:
    from builder.build.arrays import Bytes


class Filler:
    """One file, or a span of it, window after window.

    rows: parameters whose rows are given away, and the bytes of a row of each. hashed: gets the digest of the
    file, for a span that is the whole of it. beside: whether others compute meanwhile. read: is told each
    time how many bytes of the file were hashed or put into place.
    """

    def __init__(
        self,
        span: Span,
        arrays: BlockArrays,
        rows: Mapping[str, int],
        hashed: Callable[[Digest], None] | None,
        *,
        beside: bool,
        read: Callable[[Path, int], None],
    ) -> None:
        self._span, self._arrays, self._rows = span, arrays, rows
        self._hashed, self._read = hashed, read
        self._waiting = list(reversed(span.pieces))
        self._hasher = blake3.blake3(max_threads=_threads(span, beside=beside))

    def fill(self, window: Window, buffer: mmap.mmap) -> Batch | None:
        """The rows in the buffer, which whoever gets them still needs. None when the feed is closed."""
        batch = Batch([], [], buffer)
        for part in window.parts:
            first = max(part.start, window.start)
            with part.view[first - part.start : max(0, window.end - part.start)] as view:
                if self._hashed is not None:
                    self._hasher.update(view)
                if not self._place(view, first, part.placed, batch):
                    return None
                self._read(self._span.path, len(view))
        if self._hashed is not None and window.end >= self._span.end:
            self._hashed(Digest(self._hasher.hexdigest()))
        return batch

    def _place(self, view: memoryview, start: int, placed: bool, batch: Batch) -> bool:
        """Copies the parts of pieces that a buffer holds, or adds them to a batch. False: all is over."""
        end = start + len(view)
        while self._waiting and self._waiting[-1].start < end:
            piece = self._waiting[-1]
            last = min(piece.end, end)
            if not placed:
                first = max(piece.start, start)
                with view[first - start : last - start] as some:
                    if not self._put(piece, piece.at + first - piece.start, some, batch):
                        return False
            if last < piece.end:
                return True
            self._waiting.pop()
            if piece.parameter in self._rows:
                batch.ends.append(piece.block)
            else:
                self._arrays.count(piece.block)
        return True

    def _put(self, piece: Piece, at: int, some: memoryview, batch: Batch) -> bool:
        room = self._arrays.of(piece.block)
        if room is not None and (row := self._rows.get(piece.parameter)) is not None:
            batch.rows.append(Rows(piece.block, piece.parameter, at, some[: len(some) // row * row]))
        elif room is not None:
            _copy(room[piece.parameter][at : at + len(some)], some)
        return not self._arrays.closed


def _threads(span: Span, *, beside: bool) -> int:
    """Threads that hash a file. Half of the cores beside a pass: more wait for those that compute."""
    threads = hash_threads(span.end - span.start)
    return max(1, (os.cpu_count() or 1) // 2) if beside and threads != 1 else threads


def _copy(place: Bytes, some: memoryview) -> None:
    """By numpy, which lets other threads run meanwhile."""
    import numpy as np

    np.copyto(place, np.frombuffer(some, np.uint8))
