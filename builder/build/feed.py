"""Reads the weights of a pass on two threads: one asks the disk, the other hashes and puts bytes into place.

Whole pages of a weight go from the disk straight into the array that its block is computed from. What lies
around them, such as headers, norms and the ends of weights, goes through a few buffers that are used again.
Rows that are computed as they come in stay in the buffers until that is done. Nothing passes through the page
cache. What the page cache holds, and nobody hashes here or takes by rows, is read straight into its place by
one thread. `builder.build.arrays` says how many blocks are in memory.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from builder.build.arrays import BlockArrays
from builder.build.filling import Filler
from builder.build.windows import Window, first_after, next_window
from builder.errors import SourceInvalid, unreadable
from builder.keys import Digest
from builder.store.disk import buffers
from builder.store.disk.uncached import PIECE, Uncached
from builder.weights.pieces import Room, Rows, Span

if TYPE_CHECKING:
    from builder.build.arrays import Bytes

BUFFERS = 8
_NONE: Mapping[str, int] = MappingProxyType({})


class Job(NamedTuple):
    """A span to read. `hashed` gets the digest of the file, for a span that is the whole of it."""

    span: Span
    hashed: Callable[[Digest], None] | None = None


class _Full(NamedTuple):
    """A window that was read, and the buffer for what has no other place."""

    job: Job
    window: Window
    buffer: mmap.mmap


class Feed:
    """The weights of some blocks, read in the order of `jobs`.

    ahead: the blocks beside which the next one may be in memory. direct: past the page cache.
    rows: parameters that are not put into an array, and the bytes of a row of each. The thread that calls
    `take` or `finish` gives whole rows of them to `use`, of any block, as they come in.
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
        rows: Mapping[str, int] = _NONE,
        use: Callable[[Sequence[Rows]], None] = lambda rows: None,
        read: Callable[[Path, int], None] = lambda path, count: None,
    ) -> None:
        self._jobs, self._table, self._direct, self._told = jobs, table, direct, read
        self._arrays, self._computing = BlockArrays(rooms, ahead, rows), bool(rooms)
        self._rows, self._use = rows, use
        self._free: SimpleQueue[mmap.mmap | None] = SimpleQueue()
        self._full: SimpleQueue[_Full | None] = SimpleQueue()
        straight = not (direct or rows) and all(job.hashed is None for job in jobs)
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
        """The bytes of a block's parameters, once they are there. Raises what reading, or `use`, raised."""
        self._use_rows(block)
        return self._arrays.take(block)

    def done(self, block: str) -> None:
        """Nobody needs these bytes any more. A block that was not taken is not read, or let go."""
        self._arrays.done(block)

    def finish(self) -> None:
        """Waits until everything is read and hashed. Raises what that raised."""
        self._use_rows(None)
        self._arrays.finish()

    def _use_rows(self, block: str | None) -> None:
        while batches := self._arrays.batches(block):
            self._use([rows for batch in batches for rows in batch.rows])
            for batch in batches:
                for each in batch.ends:
                    self._arrays.count(each)
                self._free.put(batch.buffer)

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
            at = span.start
            while at < span.end:
                if job.hashed is None and self._arrays.is_unwanted(span):
                    return True
                buffer = self._free.get()
                if buffer is None:
                    return False
                window = next_window(span, at, buffer, self._arrays, self._rows)
                self._ask(span, at, window.end)
                begin, at = window.parts[0].start, window.end
                got = file.scatter([part.view for part in window.parts], begin)
                self._full.put(_Full(job, window._replace(end=min(at, begin + got)), buffer))
                if begin + got < at:
                    raise self._shorter(span)
                del window  # else this thread holds the arrays of a block while it waits
        return True

    def _ask(self, span: Span, start: int, end: int) -> None:
        """Notes which pieces end in this part of a file."""
        first, last = first_after(span.pieces, start), first_after(span.pieces, end)
        for piece in span.pieces[first:last]:
            self._arrays.ask(piece.block)

    # -- the thread that hashes and puts into place --------------------------------------------------------

    def _fill(self) -> None:
        job, filler = None, None
        try:
            while (full := self._full.get()) is not None:
                if filler is None or full.job is not job:
                    job, (span, hashed) = full.job, full.job
                    beside, told = self._computing, self._told
                    filler = Filler(span, self._arrays, self._rows, hashed, beside=beside, read=told)
                if (batch := filler.fill(full.window, full.buffer)) is None:
                    return
                if batch.ends or batch.rows:
                    self._arrays.give(batch)
                else:
                    self._free.put(full.buffer)
                del full, batch  # else this thread holds the arrays of a block while it waits
            self._arrays.close()
        except BaseException as error:
            self._fail(error)
