"""Who needs what in a store: the one question that gc, `clean` and pruning ask before anything is deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.keys import Digest, Key
from builder.store import checkouts, locks, pins, records, releases, views
from builder.store.layout import Store, homes


@dataclass(frozen=True)
class Need:
    """Somebody who needs what some keys lead to. `who` is a phrase: "the release production"."""

    who: str
    keys: frozenset[Key]


def needs(store: Store, checkout: Path | None = None, mine: locks.Session | None = None) -> tuple[Need, ...]:
    """Everybody who needs something, but for the declarations of `checkout` and the session `mine`.

    Those are the caller's: it says itself what it declares and what it gives up. Raises StoreError when
    somebody's needs cannot be read.
    """
    return (
        *(Need("a running build or evaluation", keys) for keys in locks.live_sessions(store, but=mine)),
        *_registered(store, checkout),
        *_released(store),
        *_pinned(store),
    )


def holders(found: Iterable[Need], key: Key) -> tuple[str, ...]:
    """Who needs a key, each once."""
    return tuple(dict.fromkeys(need.who for need in found if key in need.keys))


def digests_of(store: Store, keys: Iterable[Key]) -> frozenset[Digest]:
    """The blobs that action, target and import keys lead to, as far as they are built."""
    found: set[Digest] = set()
    for key in keys:
        record = records.read(store, key)
        if record is not None:
            found.add(record.blob.digest)
        manifest = records.read_manifest(store, key)
        if manifest is not None:
            found |= manifest.digests
    return frozenset(found)


def pinned_keys(store: Store) -> Mapping[str, Key]:
    """What the pinned targets of one checkout show, by name."""
    shown = {name: views.current_key(store.models / name) for name in sorted(pins.pinned(store))}
    return {name: key for name, key in shown.items() if key is not None}


def _registered(store: Store, checkout: Path | None) -> Iterator[Need]:
    for other in checkouts.registered(store):
        if checkout is None or other.folder != checkout.resolve():
            yield Need(f"the checkout {other.folder}", other.keys)


def _released(store: Store) -> Iterator[Need]:
    for home in homes(store):
        for name, key in releases.released(home).items():
            yield Need(f"the release {name}{_of(home)}", frozenset({key}))


def _pinned(store: Store) -> Iterator[Need]:
    """Of other checkouts: the caller's own pins are its own to give up."""
    for home in homes(store):
        if home.checkout != store.checkout:
            for name, key in pinned_keys(home).items():
                yield Need(f"{name}{_of(home)}, which was asked for by name", frozenset({key}))


def _of(home: Store) -> str:
    return f" of {home.checkout}" if home.checkout else ""
