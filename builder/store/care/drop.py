"""Dropping targets that are only a means (or that a person cleaned): bytes go, records stay.

`plan_drop` decides and is pure, `drop` asks who needs what, and acts under the lock that makes it safe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from builder.keys import Digest, Key
from builder.store import blobs, locks, records, releases, tmp, views
from builder.store.care.needs import Need, digests_of, holders, needs
from builder.store.disk import durable
from builder.store.layout import Store, homes
from builder.store.types import Blob, Manifest

_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Drop:
    """What dropping some targets will delete: their views, and the blobs that nothing else needs."""

    manifests: tuple[Manifest, ...]
    blobs: tuple[Blob, ...]


@dataclass(frozen=True)
class Freed:
    """How many blobs were deleted, their bytes, and who keeps the bytes of which key."""

    blobs: int
    bytes: int
    held: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)


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


def drop(
    store: Store,
    targets: Mapping[str, Collection[Key]],
    checkout: Path | None = None,
    mine: locks.Session | None = None,
    keep: Collection[Key] = (),
) -> Freed:
    """Deletes the views of targets and the bytes of their manifests, and nothing that others need.

    targets: name -> the manifest keys that it stands for. checkout: the caller's, whose declarations do not
    count. keep: what the caller still needs itself. Whoever `needs` names keeps the bytes, and so does
    another view; a running build or evaluation keeps the view that it reads too. Blobs that other whole
    manifests share stay. Records and manifests stay.

    Raises StoreError; what was not deleted then is garbage that the next drop or gc deletes.
    """
    with locks.gc_lock(store):
        found = needs(store, checkout, mine)
        chosen = frozenset(key for keys in targets.values() for key in keys)
        everything = {manifest.key: manifest for manifest in records.manifests(store)}
        known = [everything[key] for key in sorted(chosen) if key in everything]
        naming = _about_to_be_named(store, known, locks.others(store, but=mine))
        in_use = frozenset[Key]().union(*locks.live_sessions(store, but=mine))
        for name, keys in targets.items():
            folder = store.models / name
            if (key := views.current_key(folder)) in keys and key not in in_use:
                views.remove(store, folder)
        found = (*found, *_shown(store, chosen, targets))
        held = {key: who for key in sorted(chosen) if (who := holders(found, key))}
        going = [manifest for manifest in known if manifest.key not in held]
        going += [step for step in everything.values() if step.key not in held and _is_step_of(step, going)]
        gone = {manifest.key for manifest in going}
        others = [manifest for key, manifest in everything.items() if key not in gone]
        protected = digests_of(store, frozenset(keep).union(*(need.keys for need in found)))
        plan = plan_drop(going, others, frozenset(held), blobs.present(store), protected | naming)
        count, freed = _delete(store, plan.blobs)
        return Freed(count, freed, held)


def _shown(store: Store, keys: frozenset[Key], dropped: Collection[str]) -> Iterator[Need]:
    """Views of all checkouts that still show one of these keys, declared or not any more."""
    for home in homes(store):
        own = home.checkout == store.checkout
        whose = "" if own else f" of {home.checkout or 'the checkout around the store'}"
        with suppress(FileNotFoundError):
            for folder in sorted(home.models.iterdir()):
                if folder.name in releases.NAMES or (own and folder.name in dropped):
                    continue
                if (key := views.current_key(folder)) in keys and key:
                    yield Need(f"the target {folder.name}{whose}", frozenset({key}))


def _about_to_be_named(
    store: Store, targets: Iterable[Manifest], others: Iterable[locks.Session]
) -> frozenset[Digest]:
    """The small files of targets that somebody used since another build began. A block has a record under a
    key of that build. A tokenizer that it found here has nothing until its manifest is written.

    Asked before a view goes: where views are hard links, that changes the time of the blob.
    """
    start = min((session.started_ns for session in others), default=None)
    if start is None:
        return frozenset()
    small = {e.blob.digest for m in targets for e in m.files if not e.name.endswith(_WEIGHTS)}
    return frozenset(digest for digest in small if _changed_ns(blobs.path(store, digest)) >= start)


def _changed_ns(place: Path) -> int:
    try:
        return place.lstat().st_ctime_ns
    except OSError:
        return 0


def _is_step_of(step: Manifest, targets: Iterable[Manifest]) -> bool:
    """Whether a manifest is of a learned step, and one of the targets consists of what the step made."""
    made = {entry.blob.digest for entry in step.files if entry.name.endswith(".safetensors")}
    return step.kind == "learned" and any(made <= target.digests for target in targets)


def _delete(store: Store, doomed: Iterable[Blob]) -> tuple[int, int]:
    count = freed = 0
    for blob in doomed:
        place = blobs.path(store, blob.digest)
        with durable.explained(store.root):
            size = tmp.size_of(place)
            place.unlink(missing_ok=True)
        count, freed = count + 1, freed + size
    return count, freed
