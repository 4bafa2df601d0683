"""What one read of a file takes, and where each byte of it goes."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from builder.build.arrays import BlockArrays
from builder.store.disk.direct import ALIGNED
from builder.weights.pieces import Piece, Span

_STRAIGHT = 1 << 18  # bytes from which on a part of a weight is read straight into its place


class Part(NamedTuple):
    """Bytes of a file from `start` on: in their place already, or in a buffer."""

    start: int
    view: memoryview
    placed: bool


class Window(NamedTuple):
    """The parts of one read, one after the other. They are news from `start` to `end` of the file."""

    parts: Sequence[Part]
    start: int
    end: int


def next_window(
    span: Span, news: int, buffer: mmap.mmap, arrays: BlockArrays, rows: Mapping[str, int]
) -> Window:
    """Where the bytes of a span from `news` on go, as many as the buffer has.

    Whole pages of weights go into their place, the rest, and the weights of `rows`, into `buffer`. They end
    where a block begins that is not in memory yet: the caller waits for that one at the begin of the next
    window, so that others can finish the block before it. And they end behind a whole row. Then the last page
    is read again.
    """
    found: list[Part] = []
    start, until = news // ALIGNED * ALIGNED, span.end
    at, end = start, min(start + len(buffer), _up(span.end))

    def into_buffer(last: int) -> None:
        if last > at:
            found.append(Part(at, memoryview(buffer)[at - start : last - start], placed=False))

    for piece in span.pieces[first_after(span.pieces, news) :]:
        first, last = _up(max(piece.start, start)), min(piece.end // ALIGNED * ALIGNED, end)
        if piece.start >= end:
            break
        if (row := rows.get(piece.parameter)) is not None:
            if piece.start > news and arrays.waits(piece.block):
                until = piece.start
            elif arrays.of(piece.block, first=True) is not None and piece.end > end:
                until = piece.start + (end - piece.start) // row * row
            if until < span.end:
                end = _up(until)
                break
            continue
        if last - first < _STRAIGHT:
            continue
        if first > start and arrays.waits(piece.block):
            end = first
            break
        if (room := arrays.of(piece.block, first=True)) is None:
            continue
        array, begin = room[piece.parameter], piece.at + first - piece.start
        if (array.ctypes.data + begin) % ALIGNED:
            continue
        into_buffer(first)
        found.append(Part(first, array.data[begin : begin + last - first], placed=True))
        at = last
    into_buffer(end)
    return Window(found, news, min(until, end))


def first_after(found: Sequence[Piece], start: int) -> int:
    """The number of the first piece, in the order of the file, that ends behind `start`."""
    return bisect.bisect_right(found, start, key=lambda piece: piece.end)


def _up(at: int) -> int:
    return -(-at // ALIGNED) * ALIGNED
