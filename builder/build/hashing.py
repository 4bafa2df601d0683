"""Hashes the files of a base on a thread of its own, while blocks are made of what the page cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from builder.errors import unreadable
from builder.keys import Digest
from builder.store import blobs


class _Stopped(Exception):
    """Nobody waits for the digests any more."""


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
