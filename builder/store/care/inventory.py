"""Everything the store holds at one moment, as a value that gc and status decide on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from builder.keys import Digest, Key
from builder.store import blobs, locks, records, releases, seals, tmp, views
from builder.store.care.needs import Need, needs, pinned_keys
from builder.store.disk import durable
from builder.store.layout import Store, homes
from builder.store.types import Manifest

_T = TypeVar("_T")


@dataclass(frozen=True)
class BlobFile:
    """A blob as it lies on the disk; sound or not."""

    size: int
    changed_ns: int


@dataclass(frozen=True)
class HeldManifest:
    manifest: Manifest
    used_ns: int


@dataclass(frozen=True)
class HeldRecord:
    digest: Digest
    written_ns: int


@dataclass(frozen=True)
class View:
    """A folder that says of itself which manifest it is the view of.

    `mine`: a target's view of the checkout that looks; `released`: a release of whichever checkout.
    """

    folder: Path
    key: Key | None
    changed_ns: int
    released: bool = False
    mine: bool = False


@dataclass(frozen=True)
class Inventory:
    """`damaged` are files of records and manifests that nobody can read as such."""

    manifests: Mapping[Key, HeldManifest]
    records: Mapping[Key, HeldRecord]
    blobs: Mapping[Digest, BlobFile]
    views: tuple[View, ...]
    pinned: frozenset[Key]
    results: Mapping[Path, int]
    sessions: tuple[locks.Session, ...]
    needs: tuple[Need, ...]
    temporaries: Mapping[Path, int]
    damaged: tuple[Path, ...]


def survey(store: Store, checkout: Path | None = None) -> Inventory:
    """Reads what the store holds, and who but `checkout` needs what. Takes no lock; under `locks.gc_lock` no
    build can begin meanwhile.

    Raises StoreError when something cannot be read: deciding on half of the truth would delete the rest.
    """
    with durable.explained(store.root):
        sessions = locks.running(store)  # first: a build that begins later finds what is deleted missing
        damaged: list[Path] = []
        manifests = _sound(
            store, records.manifest_keys(store), records.manifest_path, records.parse_manifest, damaged
        )
        actions = _sound(store, records.record_keys(store), records.path, records.parse_record, damaged)
        return Inventory(
            manifests={key: HeldManifest(manifest, used_ns) for key, manifest, used_ns in manifests},
            records={key: HeldRecord(each.blob.digest, written_ns) for key, each, written_ns in actions},
            blobs={Digest(e.name): BlobFile(s.st_size, s.st_ctime_ns) for e, s in blobs.files(store)},
            views=tuple(_views(store)),
            pinned=frozenset(key for home in homes(store) for key in pinned_keys(home).values()),
            results=dict(_results(store)),
            sessions=sessions,
            needs=needs(store, checkout),
            temporaries={path: tmp.size_of(path) for path in tmp.orphans(store)},
            damaged=tuple(damaged),
        )


def _sound(
    store: Store,
    keys: Iterable[Key],
    place: Callable[[Store, Key], Path],
    parse: Callable[[str | None, Key], _T | None],
    damaged: list[Path],
) -> Iterator[tuple[Key, _T, int]]:
    """Key, value and mtime of each file that can be read; the others are added to `damaged`."""
    for key in keys:
        path = place(store, key)
        read = _read(path)
        if read is None:
            continue
        value = parse(seals.unsealed(read[0]), key)
        if value is None:
            damaged.append(path)
        else:
            yield key, value, read[1]


def _read(path: Path) -> tuple[bytes, int] | None:
    """Bytes and mtime; None when it was just deleted. Raises OSError."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _views(store: Store) -> Iterator[View]:
    for home in homes(store):
        for folder in _folders(home.models):
            released = folder.name in releases.NAMES
            mine = home.checkout == store.checkout and not released
            yield from _view(folder, released=released, mine=mine)
    for folder in (*_folders(store.bases), *_folders(store.adapters)):
        yield from _view(folder)


def _view(folder: Path, *, released: bool = False, mine: bool = False) -> Iterator[View]:
    with suppress(FileNotFoundError):  # just replaced
        if views.is_view(folder):
            yield View(folder, views.current_key(folder), folder.stat().st_mtime_ns, released, mine)


def _folders(parent: Path) -> list[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else []


def _results(store: Store) -> Iterator[tuple[Path, int]]:
    """What was measured, with the time of its last use."""
    for path in sorted(store.evals.rglob("*.json")) if store.evals.is_dir() else ():
        with suppress(FileNotFoundError):
            yield path, path.stat().st_mtime_ns
