"""Hashes the files of a base: before a pass, or on a thread of its own while blocks are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from builder.build.feed import Feed, Job
from builder.console.events import Emit, Hashing
from builder.errors import unreadable
from builder.keys import Digest
from builder.project import peaks
from builder.project.hashing import digest
from builder.project.project import Project
from builder.store import blobs
from builder.store.disk.identity import identity
from builder.store.disk.uncached import PIECE
from builder.weights import pieces


class _Stopped(Exception):
    """Nobody waits for the digests any more."""


def noting(project: Project, path: Path) -> Callable[[Digest], None]:
    """Who remembers the digest of a file, for what is read of it from now on. Raises OSError."""
    before, started = identity(path.stat()), time.time_ns()

    def note(digest: Digest) -> None:
        project.sources.note_digest(path, before, started, digest)

    return note


def hash_files(project: Project, files: Iterable[Path], table: str, emit: Emit) -> None:
    """Hashes the files whose digests nobody knows. Raises SourceInvalid, OSError.

    Together they may be larger than what the page cache keeps. Then the large ones are read past it, because
    the next build would not find them there. table: of the base, for errors.
    """
    unknown = [path for path in files if project.sources.known_digest(path) is None]
    sizes = {path: path.stat().st_size for path in unknown}
    past = not peaks.stays_cached(sum(sizes.values()))
    large = [path for path in unknown if past and sizes[path] >= PIECE]
    for path in unknown:
        if path not in large:
            digest(project, path, emit)
    done = dict.fromkeys(large, 0)

    def read(path: Path, count: int) -> None:
        done[path] += count
        emit(Hashing(path.name, done[path], sizes[path]))

    jobs = [Job(pieces.whole(path, sizes[path], ()), noting(project, path)) for path in large]
    if jobs:
        with Feed(jobs, {}, (), table, read=read) as feed:
            feed.finish()


@contextmanager
def hashed_beside(files: Mapping[Path, Callable[[Digest], None]], table: str) -> Iterator[Callable[[], None]]:
    """Hashes `files` one after the other, and tells each function the digest of its file.

    Gives a function that waits for all of them, and raises SourceInvalid for a file that cannot be read.
    table: of the base, for errors. Who leaves without waiting ends the hashing within one piece of a file.
    """
    if not files:
        yield lambda: None
        return
    left = Event()

    def go_on(_: int) -> None:
        if left.is_set():
            raise _Stopped

    def hash_all() -> None:
        for path, hashed in files.items():
            try:
                blob = blobs.hash_file(path, go_on)
            except OSError as error:
                raise unreadable(table, path, error) from error
            hashed(blob.digest)

    with ThreadPoolExecutor(1, "hash") as thread:
        done = thread.submit(hash_all)
        try:
            yield done.result
        finally:
            left.set()
