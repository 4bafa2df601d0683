"""The arrays that the weights of blocks are read into, and how many blocks may be in memory.

A block is in memory from its first piece to `done`. While one is computed, the next one is read, and no more
than that. Where the files cut blocks, as the end of a shard does, parts of further blocks are there too.
The array of a block that is done is used again for a later one, so the kernel hands out little fresh memory.

A parameter whose rows are given away has no array (builder.engine.by_rows).

A parameter lies as far behind the begin of a page as in its file. So the disk can write whole pages of it
straight into its place (builder.build.feed).
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Collection, Container, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from builder.store.disk.direct import ALIGNED
from builder.weights.pieces import Room, Rows, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[Any]

# Bytes up to which a parameter has an array of its own: norms are not copied before they are written.
_SMALL = 1 << 20
_TOGETHER = 1 << 23  # bytes of rows that are worth several threads
_APART = 64  # bytes: where parameters begin that the disk cannot write into their place
_WORD = 8  # bytes: where any number may begin


class Batch(NamedTuple):
    """Rows in one buffer, and the block of each parameter's piece that ends with them."""

    rows: list[Rows]
    ends: list[str]
    buffer: mmap.mmap


class BlockArrays:
    """The arrays of the blocks in `rooms`. Threads share them; each waits here until it may go on.

    ahead: the blocks beside which the next one may be in memory. rows: parameters without an array. Their
    rows are given away as they come in. A block with nothing else that is large never waits.
    """

    def __init__(
        self, rooms: Mapping[str, Room], ahead: Container[str], rows: Container[str] = frozenset()
    ) -> None:
        from builder.engine.pool import Pool

        self._rooms, self._ahead = rooms, ahead
        self._sizes = {
            block: {name: size for name, size in room.sizes.items() if name not in rows}
            for block, room in rooms.items()
        }
        self._light = {
            block
            for block, sizes in self._sizes.items()
            if len(sizes) < len(rooms[block].sizes) and not _space(sizes)
        }
        self._batches: deque[Batch] = deque()
        self._left = {block: len(room.pieces) for block, room in rooms.items()}
        self._pool = Pool()  # of arrays that hold any block
        self._largest = max(map(_space, self._sizes.values()), default=0)
        self._open: dict[str, dict[str, Bytes]] = {}
        self._asked = dict(self._left)  # pieces that nobody asked the disk for
        self._coming: set[str] = set()  # asked for to the end, and not complete
        self._whole: set[str] = set()  # complete, and nobody took them yet
        self._skipped: set[str] = set()
        self._taken: str | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()

    # -- whoever computes the blocks -------------------------------------------------------------------

    def parameters(self, block: str) -> Collection[str]:
        """The parameters of a block that `take` gives."""
        return self._rooms[block].sizes if block in self._rooms else ()

    def take(self, block: str) -> Mapping[str, Bytes]:
        """The bytes of a block's parameters, once they are there. Raises what reading raised."""
        if block not in self._rooms:
            return {}
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._is_complete(block))
            if self._error is not None:
                raise self._error
            self._taken = block
            self._whole.discard(block)
            self._changed.notify_all()
            return self._arrays(block)

    def done(self, block: str) -> None:
        """Nobody needs these bytes any more. A block that was not taken is not read, or let go."""
        with self._changed:
            self._skipped.add(block)
            self._whole.discard(block)
            self._coming.discard(block)
            self._open.pop(block, None)
            if self._taken == block:
                self._taken = None
            self._changed.notify_all()

    def batches(self, block: str | None) -> list[Batch]:
        """Some rows that came in, without those that nobody wants. Waits for them.

        Empty once a block is complete (without one: once everything is read), or when reading failed.
        """

        def is_complete() -> bool:
            return self._closed if block is None else self._is_complete(block)

        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or bool(self._batches) or is_complete())
            if self._error is not None or (block is not None and is_complete()):
                return []
            found, size = list[Batch](), 0
            left = self._left.get(block or "", 1)
            while self._batches and size < _TOGETHER and left:  # rows behind the block wait for the next one
                batch = self._batches.popleft()
                left -= batch.ends.count(block or "")
                rows = [rows for rows in batch.rows if rows.block not in self._skipped]
                size += sum(len(each.data) for each in rows)
                found.append(batch._replace(rows=rows))
            return found

    def _is_complete(self, block: str) -> bool:
        return block not in self._rooms or self._left[block] == 0

    def finish(self) -> None:
        """Waits until everything is read. Raises what reading raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._closed)
            if self._error is not None:
                raise self._error

    # -- whoever reads them ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing more is to be read."""
        return self._closed

    @property
    def in_memory(self) -> Collection[str]:
        """The blocks that are begun and not done."""
        with self._changed:
            return set(self._open)

    def waits(self, block: str) -> bool:
        """Whether `of` may have to wait: the block is wanted, and not in memory yet."""
        with self._changed:
            return block not in self._open and block not in self._skipped

    def is_unwanted(self, span: Span) -> bool:
        """Whether nobody needs any block of a span."""
        with self._changed:
            return all(piece.block in self._skipped for piece in span.pieces)

    def of(self, block: str, *, first: bool = False) -> Mapping[str, Bytes] | None:
        """The arrays of a block. Waits until another block may be in memory. None: nobody wants the block.

        first: for whoever asks the disk, before the blocks in front of this one are complete.
        """

        def may_go_on() -> bool:
            return self._closed or block in self._skipped or self._has_room(first)

        with self._changed:
            if block not in self._open and block not in self._light:
                self._changed.wait_for(may_go_on)
            return None if self._closed or block in self._skipped else self._arrays(block)

    def ask(self, block: str) -> None:
        """The end of one more piece of a block is asked for. It gets into its place later (`count`)."""
        with self._changed:
            self._asked[block] -= 1
            if self._asked[block] == 0 and not (block in self._skipped or block in self._light):
                self._coming.add(block)

    def count(self, block: str) -> None:
        """One more piece of a block is in its place."""
        with self._changed:
            self._left[block] -= 1
            if self._left[block] == 0 and block not in self._skipped:
                self._coming.discard(block)
                if block not in self._light:
                    self._whole.add(block)
                self._changed.notify_all()

    def give(self, batch: Batch) -> None:
        """Rows that came in, for whoever computes the blocks."""
        with self._changed:
            self._batches.append(batch)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more is read. `error`: why."""
        with self._changed:
            self._error = self._error or error
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, first: bool) -> bool:
        if self._whole or (first and self._coming):
            return False
        return self._taken is None or self._taken in self._ahead

    def _arrays(self, block: str) -> dict[str, Bytes]:
        import numpy as np

        if block not in self._open:
            whole, at = self._pool.empty(self._largest, "uint8"), 0
            begin = whole.ctypes.data
            firsts = _firsts(self._rooms[block])
            self._open[block] = {}
            for name, size in self._sizes[block].items():
                if size < _SMALL:
                    self._open[block][name] = np.empty(size, np.uint8)
                    continue
                straight = firsts[name] % _WORD == 0
                at += (firsts[name] - begin - at) % ALIGNED if straight else -(begin + at) % _APART
                self._open[block][name] = whole[at : at + size]
                at += size
        return self._open[block]


def _firsts(room: Room) -> dict[str, int]:
    """Parameter -> where its first byte would lie in the file of its first piece."""
    found: dict[str, int] = {}
    for piece in room.pieces:
        found.setdefault(piece.parameter, piece.start - piece.at)
    return found


def _space(sizes: Mapping[str, int]) -> int:
    return sum(size + ALIGNED for size in sizes.values() if size >= _SMALL)
