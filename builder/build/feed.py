"""Reads the weights of a pass on two threads: one asks the disk, the other hashes and puts bytes into place.

Whole pages of a weight go from the disk straight into the array that its block is computed from. What lies
around them, such as headers, norms and the ends of weights, goes through a few buffers that are used again.
Nothing passes through the page cache. What the page cache holds, and nobody hashes here, is read straight
into its place by one thread. `builder.build.arrays` says how many blocks are in memory.
"""

from __future__ import annotations

import bisect
import mmap
import os
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import blake3

from builder.build.arrays import BlockArrays
from builder.errors import SourceInvalid, unreadable
from builder.keys import Digest, hash_threads
from builder.store.disk import buffers
from builder.store.disk.direct import ALIGNED
from builder.store.disk.uncached import PIECE, Uncached
from builder.weights.pieces import Piece, Room, Span

if TYPE_CHECKING:
    from builder.build.arrays import Bytes

BUFFERS = 8
_STRAIGHT = 1 << 18  # bytes from which on a part of a weight is read straight into its place


class Job(NamedTuple):
    """A span to read. `hashed` gets the digest of the file, for a span that is the whole of it."""

    span: Span
    hashed: Callable[[Digest], None] | None = None


class _Part(NamedTuple):
    """Bytes of a file from `start` on: in their place already, or in a buffer."""

    start: int
    view: memoryview
    placed: bool


class _Full(NamedTuple):
    """The parts of one read, and how many bytes of them there are."""

    job: Job
    parts: Sequence[_Part]
    buffer: mmap.mmap
    size: int


class Feed:
    """The weights of some blocks, read in the order of `jobs`.

    ahead: the blocks beside which the next one may be in memory. direct: past the page cache.
    table: of the base, for errors. read: is told each time how many bytes of a file were hashed or put into
    place, by a thread of its own.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        rooms: Mapping[str, Room],
        ahead: Container[str],
        table: str,
        *,
        direct: bool = True,
        read: Callable[[Path, int], None] = lambda path, count: None,
    ) -> None:
        self._jobs, self._table, self._direct, self._told = jobs, table, direct, read
        self._arrays, self._computing = BlockArrays(rooms, ahead), bool(rooms)
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
        self._arrays.close()
        self._free.put(None)
        for thread in self._threads:
            thread.join()

    def parameters(self, block: str) -> Collection[str]:
        """The parameters of a block that `take` gives."""
        return self._arrays.parameters(block)

    def take(self, block: str) -> Mapping[str, Bytes]:
        """The bytes of a block's parameters, once they are there. Raises what reading raised."""
        return self._arrays.take(block)

    def done(self, block: str) -> None:
        """Nobody needs these bytes any more. A block that was not taken is not read, or let go."""
        self._arrays.done(block)

    def finish(self) -> None:
        """Waits until everything is read and hashed. Raises what that raised."""
        self._arrays.finish()

    @property
    def in_memory(self) -> Collection[str]:
        """The blocks that are begun and not done."""
        return self._arrays.in_memory

    def _fail(self, error: BaseException) -> None:
        self._arrays.close(error)
        self._free.put(None)

    # -- the thread that does both -------------------------------------------------------------------------

    def _read_straight(self) -> None:
        try:
            for job in self._jobs:
                if not self._place_span(job.span):
                    return
            self._arrays.close()
        except BaseException as error:
            self._fail(error)

    def _place_span(self, span: Span) -> bool:
        """False when the feed is closed."""
        with self._opened(span, direct=False) as file:
            for piece in span.pieces:
                if (room := self._arrays.of(piece.block)) is not None:
                    place = room[piece.parameter].data[piece.at : piece.at + piece.end - piece.start]
                    for at in range(0, len(place), PIECE):
                        if self._arrays.closed:
                            return False
                        if not file.fill(place[at : at + PIECE], piece.start + at):
                            raise self._shorter(span)
                    del room, place
                self._arrays.count(piece.block)
        return not self._arrays.closed

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
                if job.hashed is None and self._arrays.is_unwanted(span):
                    return True
                buffer = self._free.get()
                if buffer is None:
                    return False
                parts = self._parts(span, start, buffer)
                self._ask(span, start, parts[-1].start + len(parts[-1].view))
                got = file.scatter([part.view for part in parts], start)
                wanted = min(sum(len(part.view) for part in parts), span.end - start)
                self._full.put(_Full(job, parts, buffer, got))
                del parts  # else this thread holds the arrays of a block while it waits
                if got < wanted:
                    raise self._shorter(span)
                start += got
        return True

    def _parts(self, span: Span, start: int, buffer: mmap.mmap) -> list[_Part]:
        """Where the next bytes of a span go: whole pages of weights into their place, the rest into `buffer`.

        It ends where a block begins that is not in memory yet: this thread waits for that one at the begin
        of the next read, so that the other thread can finish the block before it.
        """
        found: list[_Part] = []
        at, end = start, min(start + PIECE, _up(span.end))

        def into_buffer(last: int) -> None:
            if last > at:
                found.append(_Part(at, memoryview(buffer)[at - start : last - start], placed=False))

        for piece in span.pieces[_first_after(span.pieces, start) :]:
            first, last = _up(max(piece.start, start)), min(piece.end // ALIGNED * ALIGNED, end)
            if piece.start >= end:
                break
            if last - first < _STRAIGHT:
                continue
            if first > start and self._arrays.waits(piece.block):
                end = first
                break
            if (room := self._arrays.of(piece.block, first=True)) is None:
                continue
            array, begin = room[piece.parameter], piece.at + first - piece.start
            if (array.ctypes.data + begin) % ALIGNED:
                continue
            into_buffer(first)
            found.append(_Part(first, array.data[begin : begin + last - first], placed=True))
            at = last
        into_buffer(end)
        return found

    def _ask(self, span: Span, start: int, end: int) -> None:
        """Notes which pieces end in this part of a file."""
        first, last = _first_after(span.pieces, start), _first_after(span.pieces, end)
        for piece in span.pieces[first:last]:
            self._arrays.ask(piece.block)

    # -- the thread that hashes and puts into place --------------------------------------------------------

    def _fill(self) -> None:
        job: Job | None = None
        hasher, waiting = blake3.blake3(), list[Piece]()
        try:
            while (full := self._full.get()) is not None:
                if full.job is not job:
                    job, waiting = full.job, list(reversed(full.job.span.pieces))
                    hasher = blake3.blake3(max_threads=self._hashers(job.span))
                for part in full.parts:
                    with part.view[: max(0, full.parts[0].start + full.size - part.start)] as view:
                        if job.hashed is not None:
                            hasher.update(view)
                        if not self._place(view, part, waiting):
                            return
                        self._told(job.span.path, len(view))
                if job.hashed is not None and full.parts[0].start + full.size >= job.span.end:
                    job.hashed(Digest(hasher.hexdigest()))
                self._free.put(full.buffer)
                del full, part  # else this thread holds the arrays of a block while it waits
            self._arrays.close()
        except BaseException as error:
            self._fail(error)

    def _hashers(self, span: Span) -> int:
        """Threads that hash a file. Half of the cores beside a pass: more wait for those that compute."""
        threads = hash_threads(span.end - span.start)
        return max(1, (os.cpu_count() or 1) // 2) if self._computing and threads != 1 else threads

    def _place(self, view: memoryview, part: _Part, waiting: list[Piece]) -> bool:
        """Copies the parts of the pieces that a buffer holds. False when the feed is closed."""
        start, end = part.start, part.start + len(view)
        while waiting and waiting[-1].start < end:
            piece = waiting[-1]
            last = min(piece.end, end)
            if not part.placed:
                room = self._arrays.of(piece.block)
                if self._arrays.closed:
                    return False
                if room is not None:
                    first = max(piece.start, start)
                    at = piece.at + first - piece.start
                    _copy(room[piece.parameter][at : at + last - first], view[first - start : last - start])
                del room
            if last < piece.end:
                return True
            waiting.pop()
            self._arrays.count(piece.block)
        return True


def _copy(place: Bytes, some: memoryview) -> None:
    """By numpy, which lets other threads run meanwhile."""
    import numpy as np

    np.copyto(place, np.frombuffer(some, np.uint8))


def _up(at: int) -> int:
    return -(-at // ALIGNED) * ALIGNED


def _first_after(found: Sequence[Piece], start: int) -> int:
    """The number of the first piece, in the order of the file, that ends behind `start`."""
    return bisect.bisect_right(found, start, key=lambda piece: piece.end)
