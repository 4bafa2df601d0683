"""Dropping targets that are only a means (or that a person cleaned): bytes go, records stay.

`plan_drop` decides and is pure, `apply_drop` acts, `drop` does both under the lock that makes it safe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from builder.keys import Digest, Key
from builder.store import blobs, locks, records, releases, tmp, views
from builder.store.disk import durable
from builder.store.layout import Store
from builder.store.types import Blob, Manifest


@dataclass(frozen=True)
class Drop:
    """What dropping some targets will delete: their views, and the blobs that nothing else needs."""

    manifests: tuple[Manifest, ...]
    blobs: tuple[Blob, ...]


@dataclass(frozen=True)
class Freed:
    """How many blobs were deleted, and their bytes."""

    blobs: int
    bytes: int


def plan_drop(
    dropped: Iterable[Manifest],
    others: Iterable[Manifest],
    keep: Collection[Key],
    present: Mapping[Digest, int],
    protected: Collection[Digest] = (),
) -> Drop:
    """Chooses the blobs of `dropped` that nobody else needs.

    Needed by others: everything in a manifest of `others` that is whole (all its blobs are present) or
    in `keep`, and everything in `protected` (what running builds may use).
    """
    needed = set(protected)
    for manifest in others:
        if manifest.key in keep or manifest.digests <= present.keys():
            needed |= manifest.digests
    chosen = tuple(dropped)
    going = {e.blob.digest: e.blob for m in chosen for e in m.files if e.blob.digest in present}
    return Drop(chosen, tuple(blob for digest, blob in sorted(going.items()) if digest not in needed))


def apply_drop(store: Store, plan: Drop) -> Freed:
    """Deletes views, then blobs; the caller holds `locks.gc_lock`. Raises StoreError, and can be repeated."""
    for manifest in plan.manifests:
        folder = views.folder_of(store, manifest)
        if views.current_key(folder) == manifest.key:
            views.remove(store, folder)
    count = freed = 0
    for blob in plan.blobs:
        place = blobs.path(store, blob.digest)
        with durable.explained(store.root):
            size = tmp.size_of(place)
            place.unlink(missing_ok=True)
        count, freed = count + 1, freed + size
    return Freed(count, freed)


def drop(
    store: Store, keys: Iterable[Key], keep: Iterable[Key] = (), mine: locks.Session | None = None
) -> Freed:
    """Deletes the views and bytes of the targets with these manifest keys, and nothing that others need.

    Kept: the blobs of every other manifest that is whole or in `keep`, and whatever running builds and
    releases need;
    targets that a running build needs stay altogether. `mine` is the caller's own session, which does
    not count. Records and manifests stay. Keys without a manifest are skipped.

    Raises StoreError; what was not deleted then is garbage that the next drop or gc deletes.
    """
    with locks.gc_lock(store):
        kept = frozenset(keep)
        sessions = locks.live_sessions(store, but=mine)
        in_use = frozenset[Key]().union(*sessions)
        everything = {manifest.key: manifest for manifest in records.manifests(store)}
        going = [everything[k] for k in dict.fromkeys(keys) if k in everything and k not in kept | in_use]
        names = {manifest.key for manifest in going}
        others = [manifest for key, manifest in everything.items() if key not in names]
        protected = needed_by(store, in_use.union(releases.released(store).values()))
        return apply_drop(store, plan_drop(going, others, kept, blobs.present(store), protected))


def needed_by(store: Store, keys: Iterable[Key]) -> frozenset[Digest]:
    """The blobs that action, target and base keys lead to, as far as they are built."""
    found: set[Digest] = set()
    for key in keys:
        record = records.read(store, key)
        if record is not None:
            found.add(record.blob.digest)
        manifest = records.read_manifest(store, key)
        if manifest is not None:
            found |= manifest.digests
    return frozenset(found)
