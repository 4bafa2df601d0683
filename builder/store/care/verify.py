"""Looking at everything the store holds, byte by byte. Changes nothing, and may run beside builds and gc."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from builder.keys import Digest, Key, is_digest
from builder.store import blobs, records, seals, views
from builder.store.care.findings import Finding, Kind, found, stamp_of
from builder.store.disk import capability, durable
from builder.store.disk.names import is_hidden
from builder.store.layout import Store
from builder.store.types import Blob, FileEntry, Manifest

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Report:
    """What was found, and how much was read for it."""

    findings: tuple[Finding, ...]
    files: int
    bytes: int

    @property
    def is_clean(self) -> bool:
        """No damage; notes do not count."""
        return not any(finding.kind.is_damage for finding in self.findings)


@dataclass(frozen=True)
class _Job:
    """A file to hash and what it should be; in a view when `view` is set."""

    path: Path
    blob: Blob
    view: Path | None = None


def verify(
    store: Store,
    only: Collection[Key] | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Hashes the store's blobs and views and reads every record; finds and changes nothing.

    `only` restricts it to the targets and bases with these manifest keys, `fraction` to a random part
    of the files (the same one for the same seed). Raises StoreError when a folder cannot be listed.
    """
    with durable.explained(store.root):
        manifests = {m.key: m for m in records.manifests(store) if only is None or m.key in only}
        sizes = _recorded_sizes(store, manifests.values(), only)
        places = list(_views(store, manifests, only))
        wanted = None if only is None else {d for m in manifests.values() for d in m.digests}
        jobs = list(_blob_jobs(store, sizes, wanted)) + list(_view_jobs(store, places))
        results = [] if only is not None else list(_texts(store))
        results += _missing(store, places)
        results += _strangers(store, places, everything=only is None)
    if fraction < 1.0:
        jobs = random.Random(seed).sample(jobs, round(len(jobs) * fraction))
    results += _hash_all(jobs, sizes, threads or min(4, os.cpu_count() or 1), on_progress)
    results += _spread(store, results, places)
    unique = {(f.path, f.kind): f for f in results}
    ordered = sorted(unique.values(), key=lambda f: (not f.kind.is_damage, str(f.path), f.kind.name))
    return Report(tuple(ordered), len(jobs), sum(job.blob.size for job in jobs))


def _recorded_sizes(
    store: Store, manifests: Iterable[Manifest], only: Collection[Key] | None
) -> Mapping[Digest, int]:
    """What records and manifests say about the size of each blob."""
    sizes = {entry.blob.digest: entry.blob.size for m in manifests for entry in m.files}
    if only is None:
        for key in records.record_keys(store):
            record = records.read(store, key)
            if record is not None:
                sizes.setdefault(record.blob.digest, record.blob.size)
    return sizes


def _views(
    store: Store, manifests: Mapping[Key, Manifest], only: Collection[Key] | None
) -> Iterator[tuple[Path, Manifest]]:
    """The folders that say what they are the view of, with that manifest (their own copy if need be)."""
    for folder in _view_folders(store):
        key = views.current_key(folder)
        if key is not None and (only is None or key in only):
            manifest = manifests.get(key) or records.parse_manifest(seals.read(folder / views.MANIFEST), key)
            if manifest is not None:
                yield folder, manifest


def _view_folders(store: Store) -> Iterator[Path]:
    for parent in (store.models, store.bases):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            if (folder / views.MANIFEST).is_file() and not folder.is_symlink():
                yield folder


def _blob_jobs(
    store: Store, sizes: Mapping[Digest, int], wanted: Collection[Digest] | None
) -> Iterator[_Job]:
    for entry, status in blobs.files(store):
        digest = Digest(entry.name)
        if wanted is None or digest in wanted:
            yield _Job(Path(entry.path), Blob(digest, sizes.get(digest, status.st_size)))


def _view_jobs(store: Store, places: Iterable[tuple[Path, Manifest]]) -> Iterator[_Job]:
    """The files of views that do not share their bytes with a blob."""
    for folder, manifest in places:
        for entry in manifest.files:
            if not _is_link_to_blob(store, folder, entry):
                yield _Job(folder / entry.name, entry.blob, folder)


def _is_link_to_blob(store: Store, folder: Path, entry: FileEntry) -> bool:
    mine, its = stamp_of(folder / entry.name), stamp_of(blobs.path(store, entry.blob.digest))
    return mine is not None and mine == its


def _texts(store: Store) -> Iterator[Finding]:
    """Records, manifests, results and roots that cannot be read as such; records whose blob is gone."""
    for key in records.record_keys(store):
        path = records.path(store, key)
        record = records.read(store, key)
        if record is None:
            yield from _if_there(found(Kind.BAD_TEXT, path))
        elif not blobs.path(store, record.blob.digest).is_file():
            yield found(Kind.DANGLING, path)
    for key in records.manifest_keys(store):
        if records.read_manifest(store, key) is None:
            yield from _if_there(found(Kind.BAD_TEXT, records.manifest_path(store, key)))
    for folder in _view_folders(store):
        if seals.read(folder / views.MANIFEST) is None:
            yield found(Kind.EDITED, folder / views.MANIFEST, view=folder)
    for folder in (store.evals, store.roots):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_file() and not is_hidden(path.name) and seals.read(path) is None:
                yield from _if_there(found(Kind.BAD_TEXT, path))


def _if_there(finding: Finding) -> Iterator[Finding]:
    """Not what was deleted while we looked."""
    if finding.stamp is not None:
        yield finding


def _missing(store: Store, places: Iterable[tuple[Path, Manifest]]) -> Iterator[Finding]:
    """Blobs that are gone although the view says that the target is there."""
    for folder, manifest in places:
        for entry in manifest.files:
            path = blobs.path(store, entry.blob.digest)
            if not os.path.lexists(path) and views.current_key(folder) == manifest.key:
                yield Finding(Kind.MISSING, path, f"{entry.name} of {manifest.name}")


def _strangers(store: Store, places: Iterable[tuple[Path, Manifest]], everything: bool) -> Iterator[Finding]:
    """Files in views and among the blobs that nothing put there, and edited manifests of views."""
    for folder, manifest in places:
        text = seals.read(folder / views.MANIFEST)
        if text is not None and records.parse_manifest(text, manifest.key) != manifest:
            yield found(Kind.EDITED, folder / views.MANIFEST, view=folder)
        names = {entry.name for entry in manifest.files} | {views.MANIFEST, views.CARD}
        for path in sorted(folder.iterdir()):
            if path.name not in names and not is_hidden(path.name):
                yield found(Kind.FOREIGN, path)
    if everything and store.blobs.is_dir():
        for path in sorted(store.blobs.rglob("*")):
            in_place = len(path.parent.name) == 2 and path.name.startswith(path.parent.name)
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode) or is_hidden(path.name):
                continue
            if not (in_place and is_digest(path.name) and stat.S_ISREG(mode)):
                yield found(Kind.FOREIGN, path)
            elif mode & 0o222 and capability.keeps_modes(store.tmp):
                yield found(Kind.WRITABLE, path)


def _hash_all(
    jobs: list[_Job], sizes: Mapping[Digest, int], threads: int, on_progress: Progress | None
) -> list[Finding]:
    total = sum(job.blob.size for job in jobs)
    done, lock = 0, threading.Lock()

    def tick(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            if on_progress is not None:
                on_progress(done, total)

    with ThreadPoolExecutor(max_workers=threads) as pool:
        results = pool.map(lambda job: _check(job, sizes, tick), jobs)
        return [finding for finding in results if finding is not None]


def _check(job: _Job, sizes: Mapping[Digest, int], tick: Callable[[int], None]) -> Finding | None:
    """Hashes one file. None when it is right, or gone by now."""
    stamp = stamp_of(job.path)
    if stamp is None:
        return Finding(Kind.EDITED, job.path, "missing", job.view) if job.view is not None else None
    try:
        actual = blobs.hash_file(job.path, tick)
    except OSError as error:
        return Finding(Kind.UNREADABLE, job.path, error.strerror or "", job.view, stamp)
    is_file = not job.path.is_symlink()
    if actual == job.blob and is_file:
        return None
    if stamp_of(job.path) is None:
        return None
    return Finding(_kind(job, actual, sizes), job.path, f"BLAKE3 {actual.digest[:16]}…", job.view, stamp)


def _kind(job: _Job, actual: Blob, sizes: Mapping[Digest, int]) -> Kind:
    if job.view is not None:
        return Kind.EDITED
    if actual.digest in sizes:
        return Kind.SWAPPED
    return Kind.CORRUPT if actual.size == job.blob.size else Kind.TRUNCATED


def _spread(
    store: Store, findings: Iterable[Finding], places: Iterable[tuple[Path, Manifest]]
) -> list[Finding]:
    """Damage of a blob is damage of the views that are hard links to it."""
    bad = {finding.path for finding in findings if finding.kind.is_damage and finding.view is None}
    return [
        found(Kind.EDITED, folder / entry.name, "shares a damaged blob", folder)
        for folder, manifest in places
        for entry in manifest.files
        if blobs.path(store, entry.blob.digest) in bad and _is_link_to_blob(store, folder, entry)
    ]
