"""Reads the weights of a pass on two threads: one asks the disk, the other hashes and puts bytes into place.

Every byte of the disk goes through a few buffers that are used again, and from there into the array that the
block is computed from. The array of a block that is done is used again for a later block. So the kernel hands
out little fresh memory, and nothing passes through the page cache. What the page cache holds, and nobody
hashes here, is read straight into its place by one thread.

A block is in memory from its first piece to `done`. While one is computed, the next one is read, and no more
than that. Where the files cut blocks, as the end of a shard does, parts of further blocks are there too.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import blake3

from builder.errors import SourceInvalid, unreadable
from builder.keys import Digest, hash_threads
from builder.store.disk import buffers
from builder.store.disk.uncached import ALIGNED, PIECE, Uncached
from builder.weights.pieces import Piece, Room, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[Any]

BUFFERS = 4
_SMALL = (
    1 << 20
)  # bytes of a parameter with an array of its own: norms are not copied before they are written
_APART = 64  # bytes: where parameters begin in the array of a block


class Job(NamedTuple):
    """A span to read. `hashed` gets the digest of the file, for a span that is the whole of it."""

    span: Span
    hashed: Callable[[Digest], None] | None = None


class _Full(NamedTuple):
    job: Job
    start: int
    buffer: mmap.mmap
    size: int


class Feed:
    """The weights of some blocks, read in the order of `jobs`.

    ahead: the blocks beside which the next one may be in memory. direct: past the page cache.
    table: of the base, for errors.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        rooms: Mapping[str, Room],
        ahead: Container[str],
        table: str,
        *,
        direct: bool = True,
    ) -> None:
        from builder.engine.pool import Pool

        self._jobs, self._rooms, self._ahead, self._table = jobs, rooms, ahead, table
        self._direct = direct
        self._left = {block: len(room.pieces) for block, room in rooms.items()}
        self._pool = Pool()  # of arrays that hold any block
        self._largest = max((_space(room) for room in rooms.values()), default=0)
        self._open: dict[str, dict[str, Bytes]] = {}
        self._whole: set[str] = set()  # complete, and nobody took them yet
        self._skipped: set[str] = set()
        self._taken: str | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._free: SimpleQueue[mmap.mmap | None] = SimpleQueue()
        self._full: SimpleQueue[_Full | None] = SimpleQueue()
        straight = not direct and all(job.hashed is None for job in jobs)
        for _ in range(0 if straight else BUFFERS):
            self._free.put(buffers.new(PIECE))
        work = (self._read_straight,) if straight else (self._read, self._fill)
        self._threads = [threading.Thread(target=each, name="feed", daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._free.put(None)
        for thread in self._threads:
            thread.join()

    def parameters(self, block: str) -> Collection[str]:
        """The parameters of a block that `take` gives."""
        return self._rooms[block].sizes if block in self._rooms else ()

    def take(self, block: str) -> Mapping[str, Bytes]:
        """The bytes of a block's parameters, once they are there. Raises what reading raised."""
        if block not in self._rooms:
            return {}
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._left[block] == 0)
            if self._error is not None:
                raise self._error
            self._taken = block
            self._whole.discard(block)
            self._changed.notify_all()
            return self._room(block)

    def done(self, block: str) -> None:
        """Nobody needs these bytes any more. A block that was not taken is not read, or let go."""
        with self._changed:
            self._skipped.add(block)
            self._whole.discard(block)
            self._open.pop(block, None)
            if self._taken == block:
                self._taken = None
            self._changed.notify_all()

    def finish(self) -> None:
        """Waits until everything is read and hashed. Raises what that raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._closed)
            if self._error is not None:
                raise self._error

    # -- the thread that does both -------------------------------------------------------------------------

    def _read_straight(self) -> None:
        try:
            for job in self._jobs:
                if not self._place_span(job.span):
                    return
            self._close()
        except BaseException as error:
            self._fail(error)

    def _place_span(self, span: Span) -> bool:
        """False when the feed is closed."""
        with self._opened(span, direct=False) as file:
            for piece in span.pieces:
                if (room := self._room_for(piece.block)) is not None:
                    place = room[piece.parameter].data[piece.at : piece.at + piece.end - piece.start]
                    for at in range(0, len(place), PIECE):
                        if self._closed:
                            return False
                        if not file.fill(place[at : at + PIECE], piece.start + at):
                            raise self._shorter(span)
                    del room, place
                self._count(piece.block)
        return not self._closed

    @contextmanager
    def _opened(self, span: Span, *, direct: bool) -> Iterator[Uncached]:
        try:
            with closing(Uncached(span.path, direct=direct)) as file:
                yield file
        except OSError as error:
            raise unreadable(self._table, span.path, error) from error

    def _shorter(self, span: Span) -> SourceInvalid:
        return SourceInvalid(table=self._table, path=span.path, what="became shorter while it was read")

    # -- the thread that asks the disk ---------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for job in self._jobs:
                if not self._read_span(job):
                    break
        except BaseException as error:
            self._fail(error)
        self._full.put(None)

    def _read_span(self, job: Job) -> bool:
        """False when the feed is closed."""
        span = job.span
        with self._opened(span, direct=self._direct) as file:
            start = span.start // ALIGNED * ALIGNED
            while start < span.end:
                if job.hashed is None and self._is_unwanted(span):
                    return True
                buffer = self._free.get()
                if buffer is None:
                    return False
                count = min(PIECE, -(-(span.end - start) // ALIGNED) * ALIGNED)
                got = file.read(buffer, start, count)
                self._full.put(_Full(job, start, buffer, got))
                if got < min(count, span.end - start):
                    raise self._shorter(span)
                start += got
        return True

    def _is_unwanted(self, span: Span) -> bool:
        with self._changed:
            return all(piece.block in self._skipped for piece in span.pieces)

    # -- the thread that hashes and puts into place --------------------------------------------------------

    def _fill(self) -> None:
        import numpy as np

        job: Job | None = None
        hasher, waiting = blake3.blake3(), list[Piece]()
        try:
            while (full := self._full.get()) is not None:
                if full.job is not job:
                    job, waiting = full.job, list(reversed(full.job.span.pieces))
                    hasher = blake3.blake3(max_threads=hash_threads(job.span.end - job.span.start))
                with memoryview(full.buffer) as view, view[: full.size] as bytes_:
                    if job.hashed is not None:
                        hasher.update(bytes_)
                        if full.start + full.size >= job.span.end:
                            job.hashed(Digest(hasher.hexdigest()))
                    source = np.frombuffer(bytes_, np.uint8)
                    if not self._place(source, full.start, waiting):
                        return
                    del source
                self._free.put(full.buffer)
            self._close()
        except BaseException as error:
            self._fail(error)

    def _place(self, source: Bytes, start: int, waiting: list[Piece]) -> bool:
        """Copies the parts of the pieces that a buffer holds. False when the feed is closed."""
        import numpy as np

        end = start + len(source)
        while waiting and waiting[-1].start < end:
            piece = waiting[-1]
            room = self._room_for(piece.block)
            if self._closed:
                return False
            first, last = max(piece.start, start), min(piece.end, end)
            if room is not None:
                at = piece.at + first - piece.start
                np.copyto(room[piece.parameter][at : at + last - first], source[first - start : last - start])
            if last < piece.end:
                return True
            waiting.pop()
            del room
            self._count(piece.block)
        return True

    def _room_for(self, block: str) -> Mapping[str, Bytes] | None:
        """The arrays of a block. Waits until another block may be in memory. None: nobody wants the block."""
        with self._changed:
            if block not in self._open:
                self._changed.wait_for(lambda: self._closed or block in self._skipped or self._has_room())
            return None if self._closed or block in self._skipped else self._room(block)

    def _has_room(self) -> bool:
        return not self._whole and (self._taken is None or self._taken in self._ahead)

    def _room(self, block: str) -> dict[str, Bytes]:
        import numpy as np

        if block not in self._open:
            whole, at = self._pool.empty(self._largest, "uint8"), 0
            self._open[block] = {}
            for name, size in self._rooms[block].sizes.items():
                if size < _SMALL:
                    self._open[block][name] = np.empty(size, np.uint8)
                else:
                    self._open[block][name] = whole[at : at + size]
                    at += -(-size // _APART) * _APART
        return self._open[block]

    def _count(self, block: str) -> None:
        with self._changed:
            self._left[block] -= 1
            if self._left[block] == 0 and block not in self._skipped:
                self._whole.add(block)
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._close()
        self._free.put(None)


def _space(room: Room) -> int:
    return sum(-(-size // _APART) * _APART for size in room.sizes.values() if size >= _SMALL)
