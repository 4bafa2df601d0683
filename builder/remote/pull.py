"""Pulling: what is planned from an offer, and doing it. Nothing is believed before its bytes are hashed.

A blob gets its name here only with the right digest and size, its record follows, a manifest follows all
of its blobs. That is the order of the local store, so any moment can be the last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock

from builder.console.events import Emit, Note, Transferred
from builder.console.words import count, size_text
from builder.errors import StoreFull
from builder.keys import Digest, Key
from builder.remote import layout
from builder.remote.contents import several
from builder.remote.offer import Offer
from builder.remote.transport import Interrupted, Transport
from builder.store import blobs, records, seals
from builder.store.layout import Store
from builder.store.locks import acquire, build_session
from builder.store.types import Blob, Manifest, Record

_TRIES = 2
_SLACK = 4 << 20


@dataclass(frozen=True)
class PullPlan:
    """What is to be fetched, and what will then be known."""

    blobs: tuple[Blob, ...]
    records: tuple[tuple[Record, str], ...]
    manifests: tuple[tuple[Manifest, str], ...]
    results: tuple[tuple[Key, str], ...]

    @property
    def nbytes(self) -> int:
        return sum(blob.size for blob in self.blobs)

    @property
    def is_empty(self) -> bool:
        return not (self.blobs or self.records or self.manifests or self.results)

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset(
            {*(r.key for r, _ in self.records), *(m.key for m, _ in self.manifests), *dict(self.results)}
        )


@dataclass(frozen=True)
class Pulled:
    """What came. `failed`: blobs that did not, although the remote has them."""

    blobs: int
    nbytes: int
    failed: tuple[Digest, ...]


def plan_pull(offer: Offer, has: Callable[[Blob], bool], knows: Callable[[Key], bool]) -> PullPlan:
    """What of an offer is not here. `knows`: whether a key is usable here already. Pure, but for asking
    them.
    """
    actions = [pair for key, pair in sorted(offer.records.items()) if not knows(key)]
    manifests = [pair for key, pair in sorted(offer.manifests.items()) if not knows(key)]
    needed = [record.blob for record, _ in actions]
    needed += [entry.blob for manifest, _ in manifests for entry in manifest.files]
    missing = tuple(blob for blob in dict.fromkeys(needed) if not has(blob))
    results = tuple((key, text) for key, text in sorted(offer.results.items()) if not knows(key))
    return PullPlan(missing, tuple(actions), tuple(manifests), results)


def pull(store: Store, transport: Transport, plan: PullPlan, emit: Emit) -> Pulled:
    """Fetches and believes. What came before an error stays. Raises RemoteError, StoreError."""
    free = shutil.disk_usage(store.root).free
    if plan.nbytes + _SLACK > free:
        what = f"{size_text(plan.nbytes)} are to be pulled, and {size_text(free)} are free"
        raise StoreFull(path=store.root, what=what)
    came: set[Digest] = set()
    failed: list[Digest] = []
    progress = Progress(transport.name, "pull", plan.nbytes, emit)
    with build_session(store, plan.keys):
        waiting: dict[Digest, list[tuple[Record, str]]] = {}
        for record, text in plan.records:
            waiting.setdefault(record.blob.digest, []).append((record, text))

        def one(blob: Blob) -> None:
            if not _fetch(store, transport, blob, progress):
                failed.append(blob.digest)
                return
            came.add(blob.digest)
            for record, text in waiting.get(blob.digest, ()):
                _believe(store, record, text)

        several(one, plan.blobs, progress.stop)
        for record, text in plan.records:
            if record.blob.digest not in came and blobs.has(store, record.blob):
                _believe(store, record, text)
        for key, text in plan.results:
            seals.write(store, store.evals / key[:2] / f"{key}.json", text)
        for manifest, text in plan.manifests:
            if all(blobs.has(store, entry.blob) for entry in manifest.files):
                seals.write(store, records.manifest_path(store, manifest.key), text)
    if failed:
        said = f"{transport.name} sent other bytes than it names for {count(len(failed), 'blob')}"
        emit(Note(f"{said} ({failed[0][:12]}): they are not taken"))
    got = [blob for blob in plan.blobs if blob.digest in came]
    return Pulled(len(got), sum(blob.size for blob in got), tuple(failed))


class Stopped(Exception):
    """Another transfer of the same command has failed, or a person pressed Ctrl-C."""


class Progress:
    """Counts bytes of several threads and tells them, at most once for each MB."""

    def __init__(self, remote: str, way: str, total: int, emit: Emit) -> None:
        self._remote, self._way, self._total, self._emit = remote, way, total, emit
        self._lock, self._done, self._told, self._stopped = Lock(), 0, 0, False
        self._waits = False

    def stop(self) -> None:
        """Ends every transfer at its next piece."""
        self._stopped = True

    def wait(self) -> None:
        """Says once that another run is fetching or making what is wanted."""
        with self._lock:
            before, self._waits = self._waits, True
        if not before:
            self._emit(Note(f"{self._remote}: waiting for another run, which fetches or makes the same"))

    def add(self, size: int) -> None:
        """Raises Stopped."""
        with self._lock:
            if self._stopped:
                raise Stopped
            self._done += size
            done = self._done
            if done - self._told < 1 << 20 and done < self._total:
                return
            self._told = done
        self._emit(Transferred(self._remote, self._way, min(done, self._total), self._total))


def _fetch(store: Store, transport: Transport, blob: Blob, progress: Progress) -> bool:
    """Whether the blob is here now. Raises RemoteError, StoreError."""
    with acquire(store, [Key(blob.digest)], progress.wait):  # another run may be fetching the same
        for attempt in range(_TRIES):
            if blobs.has(store, blob):
                progress.add(blob.size if attempt == 0 else 0)
                return True
            try:
                chunks = transport.stream(layout.blob(blob.digest))
                if chunks is None:
                    return False
                blobs.ingest(store, _counted(chunks, progress), blob)
                return True
            except (blobs.OtherBytes, Interrupted):
                continue
    return False


def _counted(chunks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        progress.add(len(chunk))
        yield chunk


def _believe(store: Store, record: Record, text: str) -> None:
    with acquire(store, [record.key]):
        former = records.read(store, record.key)
        if former is None or not blobs.has(store, former.blob):
            seals.write(store, records.path(store, record.key), text, order_only=True)
