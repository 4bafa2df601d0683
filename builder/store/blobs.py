"""Immutable files named by the BLAKE3 of their bytes. All bytes enter the store here."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

import blake3

from builder.errors import StoreError
from builder.keys import CHUNK, Digest, hash_threads
from builder.store import locks, seals, tmp
from builder.store.disk import direct, durable
from builder.store.layout import Store
from builder.store.types import Blob

_NAME = re.compile(r"[0-9a-f]{64}").fullmatch


def path(store: Store, digest: Digest) -> Path:
    """Where the blob lies or would lie. Raises ValueError for text that is no digest."""
    if not _NAME(digest):
        raise ValueError(f"not a digest: {digest!r}")
    return store.blobs / digest[:2] / digest


class OtherBytes(Exception):
    """What was to be a certain blob is not. Nothing entered the store."""


def ingest(
    store: Store,
    chunks: Iterable[bytes | memoryview],
    expected: Blob | None = None,
    *,
    threads: int = blake3.blake3.AUTO,
    lasting: bool = False,
) -> Blob:
    """Writes the concatenated chunks as a blob, hashing them while they are in memory.

    When it returns, the blob is complete under its name, and gets to the medium before what is written next.
    The next manifest makes it durable. Interrupted at any moment, it leaves at most a temporary file. A chunk
    may be a memoryview of any format. Bytes that the store has already are dropped. With `expected`, other
    bytes never get a name. `threads` hash a chunk: one is enough for those who write several blobs at a time.
    `lasting`: all chunks stay as they are until this returns. So large ones may be written without a copy
    (DirectWriter).

    Raises StoreError (StoreFull when the device is full), OtherBytes and whatever `chunks` raises.
    """
    hasher = blake3.blake3(max_threads=threads)
    size = 0
    with tmp.new_file(store) as staged, closing(direct.DirectWriter(staged.fd, lasting=lasting)) as writer:
        for flat in _pieces(chunks):
            hasher.update(flat)
            size += len(flat)
            if expected is not None and size > expected.size:
                raise OtherBytes
            with durable.explained(store.root):
                writer.write(flat)
        with durable.explained(store.root):
            writer.finish()
        blob = Blob(Digest(hasher.hexdigest()), size)
        if expected is not None and blob != expected:
            raise OtherBytes
        with durable.explained(store.root):
            _keep(store, staged, blob)
    return blob


def ingest_file(store: Store, source: Path) -> Blob:
    """Copies a file into the store, hashing what is read. Raises StoreError, and OSError from `source`."""
    with source.open("rb", buffering=0) as file:
        return ingest(store, _read_chunks(file.fileno()))


def has(store: Store, blob: Blob) -> bool:
    """Whether the blob is there: right size, and not edited (see `seal`; a broken seal is rehashed)."""
    return _sound(path(store, blob.digest), blob.digest, blob.size)


def present(store: Store) -> Mapping[Digest, int]:
    """Digest -> size of every blob that is there, as `has` sees it. About 5 ms for 1 000 blobs."""
    found: dict[Digest, int] = {}
    for entry, status in files(store):
        digest = Digest(entry.name)
        if seals.intact(status.st_mtime_ns, digest) or _rehash(Path(entry.path), digest, status):
            found[digest] = status.st_size
    return found


def read(store: Store, blob: Blob) -> bytes:
    """All bytes of a (small) blob. Raises StoreError when it is missing, unreadable or not these bytes."""
    place = path(store, blob.digest)
    with durable.explained(place):
        data = place.read_bytes()
    if blake3.blake3(data).hexdigest() != blob.digest:
        raise _damaged(place)
    return data


def checked(store: Store, blob: Blob) -> Path:
    """Where a (large) blob lies, after all of its bytes were hashed. Raises StoreError like `read`."""
    place = path(store, blob.digest)
    with durable.explained(place):
        if hash_file(place) != blob:
            raise _damaged(place)
    return place


def hash_file(place: Path, on_bytes: Callable[[int], None] | None = None) -> Blob:
    """Digest and size of a file by plain reads: a bad disk raises OSError here, where mmap would kill us.

    `on_bytes` is told the size of each piece after it was hashed.
    """
    size = 0
    with place.open("rb", buffering=0) as file:
        hasher = blake3.blake3(max_threads=hash_threads(os.fstat(file.fileno()).st_size))
        for piece in _read_chunks(file.fileno()):
            hasher.update(piece)
            size += len(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return Blob(Digest(hasher.hexdigest()), size)


def sound_file(place: Path, blob: Blob) -> bool:
    """Whether a file outside blobs/ (in a view) can still be that blob, by size and seal alone."""
    try:
        status = place.lstat()
    except OSError:
        return False
    regular = stat.S_ISREG(status.st_mode) and status.st_size == blob.size
    return regular and seals.intact(status.st_mtime_ns, blob.digest)


def files(store: Store) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Every regular file under a blob's name, sound or not, with its stat. Raises OSError."""
    try:
        shards = list(os.scandir(store.blobs))
    except FileNotFoundError:
        return
    for shard in shards:
        if len(shard.name) == 2 and shard.is_dir(follow_symlinks=False):
            with os.scandir(shard.path) as entries:
                for entry in entries:
                    if entry.name[:2] == shard.name and _NAME(entry.name):
                        yield from _stat(entry)


def _damaged(place: Path) -> StoreError:
    what = "its bytes do not match its name"
    return StoreError(path=place, what=what, hint="Run `doit verify --repair`.")


def _keep(store: Store, staged: tmp.Staged, blob: Blob) -> None:
    seals.close(staged.fd, os.fstat(staged.fd), blob.digest)
    final = path(store, blob.digest)
    if _sound(final, blob.digest, blob.size) and _reuse(store, final, blob):
        return
    staged.keep_as(final, 0o444, order_only=True)


def _reuse(store: Store, final: Path, blob: Blob) -> bool:
    """Marks an existing blob as just used, so that a gc that chose it lets it be; False if it is gone."""
    with locks.gc_lock(store):
        if not _sound(final, blob.digest, blob.size):
            return False
        try:
            status = final.stat()
            os.utime(final, ns=(status.st_atime_ns, status.st_mtime_ns))  # moves the ctime, not the seal
            durable.sync_folder(final.parent, order_only=True)  # its writer may not have come that far
        except PermissionError:  # somebody else's blob in a shared store: ours replaces it
            return False
    return True


def _sound(place: Path, digest: Digest, size: int) -> bool:
    try:
        status = place.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return False
    return seals.intact(status.st_mtime_ns, digest) or _rehash(place, digest, status)


def _rehash(place: Path, digest: Digest, before: os.stat_result) -> bool:
    """Decides about a broken seal by the bytes; the right bytes are sealed again where that is possible."""
    try:
        if hash_file(place).digest != digest:
            return False
        after = place.lstat()
    except OSError:
        return False
    if (after.st_mtime_ns, after.st_ino) != (before.st_mtime_ns, before.st_ino):
        return False
    with suppress(OSError):  # a read-only store: the right bytes all the same
        seals.close(str(place), after, digest)
    return True


def _stat(entry: os.DirEntry[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    with suppress(FileNotFoundError):  # just deleted
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield entry, status


def _flat(chunk: bytes | memoryview) -> memoryview:
    view = memoryview(chunk)
    if not view.nbytes:
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _pieces(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The chunks, cut where writes will end: one piece is hashed while the one before it is written."""
    size = 0
    for chunk in chunks:
        left = _flat(chunk)
        while left:
            piece = left[: direct.BUFFER - size % direct.BUFFER]
            size += len(piece)
            left = left[len(piece) :]
            yield piece


def _read_chunks(fd: int) -> Iterator[memoryview]:
    """The file in pieces that share one buffer: each must be used before the next is asked for."""
    buffer = bytearray(max(1, min(CHUNK, os.fstat(fd).st_size)))
    view = memoryview(buffer)
    while got := os.readv(fd, [buffer]):
        yield view[:got]
