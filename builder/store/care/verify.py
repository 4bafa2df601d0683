"""Looking at everything the store holds, byte by byte. Changes nothing, and may run beside builds and gc."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder.keys import Digest, Key, is_digest
from builder.store import blobs, records, seals, views
from builder.store.care.findings import Finding, Kind, found, stamp_of
from builder.store.disk import capability, durable
from builder.store.disk.identity import Identity
from builder.store.disk.names import is_hidden
from builder.store.layout import Store, homes
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
class _Place:
    """A view as it was found: the folder, what it shows, and which folder it was (views are replaced as a
    whole).
    """

    folder: Path
    manifest: Manifest
    instance: tuple[int, Identity]


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
        places = list(_places(store, manifests, only))
        wanted = None if only is None else {d for m in manifests.values() for d in m.digests}
        jobs = list(_blob_jobs(store, sizes, wanted)) + list(_view_jobs(store, places))
        results = [] if only is not None else list(_texts(store))
        results += _missing(store, places)
        results += _strangers(store, places, everything=only is None)
    if fraction < 1.0:
        jobs = random.Random(seed).sample(jobs, round(len(jobs) * fraction))
    results += _hash_all(jobs, sizes, threads or min(4, os.cpu_count() or 1), on_progress)
    results += _spread(store, results, places)
    unique = {(f.path, f.kind): f for f in results if _still(f, places)}
    ordered = sorted(unique.values(), key=lambda f: (not f.kind.is_damage, str(f.path), f.kind.name))
    return Report(tuple(ordered), len(jobs), sum(job.blob.size for job in jobs))


def _still(finding: Finding, places: Sequence[_Place]) -> bool:
    """Whether a finding is true now: what builders and gc replaced beside us is not damage."""
    if finding.kind is Kind.MISSING:
        holders = (p for p in places if finding.path.name in p.manifest.digests)
        return not os.path.lexists(finding.path) and any(
            views.instance(p.folder) == p.instance for p in holders
        )
    if finding.view is not None:
        if any(p.folder == finding.view and views.instance(p.folder) != p.instance for p in places):
            return False
        if finding.path.name in (views.MANIFEST, views.NAME):
            return finding.path.exists() and seals.read(finding.path) is None
        if not views.is_view(finding.view):
            return False
    return stamp_of(finding.path) == finding.stamp


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


def _places(
    store: Store, manifests: Mapping[Key, Manifest], only: Collection[Key] | None
) -> Iterator[_Place]:
    """The folders that say what they are the view of, with the manifest that they hold themselves."""
    for folder in _view_folders(store):
        instance, key = views.instance(folder), views.current_key(folder)
        if instance is None or key is None or (only is not None and key not in only):
            continue
        own = records.parse_manifest(seals.read(folder / views.MANIFEST), key)
        if (manifest := own or manifests.get(key)) is not None:
            yield _Place(folder, manifest, instance)


def _view_folders(store: Store) -> Iterator[Path]:
    for parent in (*(home.models for home in homes(store)), store.bases, store.adapters):
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


def _view_jobs(store: Store, places: Iterable[_Place]) -> Iterator[_Job]:
    """The files of views that do not share their bytes with a blob."""
    for place in places:
        for entry in place.manifest.files:
            if not _is_link_to_blob(store, place.folder, entry):
                yield _Job(place.folder / entry.name, entry.blob, place.folder)


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
        for name in (views.MANIFEST, views.NAME):
            if (folder / name).is_file() and seals.read(folder / name) is None:
                yield found(Kind.EDITED, folder / name, view=folder)
    for folder in (store.evals, store.roots):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_file() and not is_hidden(path.name) and seals.read(path) is None:
                yield from _if_there(found(Kind.BAD_TEXT, path))


def _if_there(finding: Finding) -> Iterator[Finding]:
    """Not what was deleted while we looked."""
    if finding.stamp is not None:
        yield finding


def _missing(store: Store, places: Iterable[_Place]) -> Iterator[Finding]:
    """Blobs that are gone although the view says that the target is there."""
    for place in places:
        for entry in place.manifest.files:
            path = blobs.path(store, entry.blob.digest)
            if not os.path.lexists(path):
                yield Finding(Kind.MISSING, path, f"{entry.name} of {place.folder.name}")


def _strangers(store: Store, places: Iterable[_Place], everything: bool) -> Iterator[Finding]:
    """Files in views and among the blobs that nothing put there, and views of another build of their key."""
    for place in places:
        own = seals.read(place.folder / views.MANIFEST)
        known = records.manifest_bytes(store, place.manifest.key)
        if own is not None and known is not None and seals.sealed(own) != known and seals.unsealed(known):
            yield found(Kind.OUTDATED, place.folder / views.MANIFEST)
        with suppress(FileNotFoundError):  # replaced or taken away meanwhile
            for path in _strange_files(place):
                yield found(Kind.FOREIGN, path)
    if everything and store.blobs.is_dir():
        for path in sorted(store.blobs.rglob("*")):
            in_place = len(path.parent.name) == 2 and path.name.startswith(path.parent.name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(mode) or is_hidden(path.name):
                continue
            if not (in_place and is_digest(path.name) and stat.S_ISREG(mode)):
                yield found(Kind.FOREIGN, path)
            elif mode & 0o222 and capability.keeps_modes(store.tmp):
                yield found(Kind.WRITABLE, path)


def _strange_files(place: _Place) -> Iterator[Path]:
    """What lies in a view, or in a folder of a view, and is no part of the view."""
    names = {entry.name for entry in place.manifest.files} | {views.MANIFEST, views.CARD}
    inner = {name.rpartition("/")[0] for name in names} - {""}
    for folder in ("", *sorted(inner)):
        for path in sorted((place.folder / folder).iterdir()):
            name = path.relative_to(place.folder).as_posix()
            if name not in names | inner and not is_hidden(path.name):
                yield path


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


def _spread(store: Store, findings: Iterable[Finding], places: Iterable[_Place]) -> list[Finding]:
    """Damage of a blob is damage of the views that are hard links to it."""
    bad = {finding.path for finding in findings if finding.kind.is_damage and finding.view is None}
    return [
        found(Kind.EDITED, place.folder / entry.name, "shares a damaged blob", place.folder)
        for place in places
        for entry in place.manifest.files
        if blobs.path(store, entry.blob.digest) in bad and _is_link_to_blob(store, place.folder, entry)
    ]
