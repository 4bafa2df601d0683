"""Released targets: views under a name of their own, and the former ones beside them.

A release says itself what it shows, so nothing else has to be kept in step: gc and pruning keep the bytes of
whatever a release shows. Each checkout that shares a store has releases of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.errors import StoreError
from builder.keys import Key
from builder.store import records, tmp, views
from builder.store.disk import durable, swap
from builder.store.layout import Store
from builder.store.types import Manifest

PRODUCTION = "production"
FORMER = ".former"
NAMES = frozenset({PRODUCTION, f"{PRODUCTION}{FORMER}"})  # no target can be called so: a target has a "_"


def released(store: Store) -> Mapping[str, Key]:
    """Folder name -> key of what it shows, of this checkout's releases and their former ones."""
    return {folder.name: key for folder in _folders(store) if (key := views.current_key(folder)) is not None}


def move(store: Store, name: str, manifest: Manifest, target: str, card: str = "") -> None:
    """Makes the release `name` the view of `manifest`; what it showed before becomes the former one.

    `target`: what the manifest is called now, `card`: its README.md.

    Every moment can be the last: the release shows what it did or `manifest`, and what it showed stays
    somewhere. Raises StoreError.
    """
    folder, former = store.models / name, store.models / f"{name}{FORMER}"
    shown = views.current_key(folder)
    if shown is not None and shown != manifest.key:
        was = views.current_name(folder) or ""
        views.materialize(store, former, manifest_of(store, folder, shown), _card(folder), was)
    views.materialize(store, folder, manifest, card, target)


def back(store: Store, name: str) -> None:
    """Exchanges a release and its former. Raises StoreError, OSError when there is no former."""
    folder, former = store.models / name, store.models / f"{name}{FORMER}"
    with durable.explained(folder):
        swap.into_place(former, folder, tmp.new_name(store))
        durable.sync_folder(store.models)


def manifest_of(store: Store, folder: Path, key: Key) -> Manifest:
    """What a release shows. Raises StoreError when its manifest is gone: then it cannot be kept."""
    manifest = records.read_manifest(store, key)
    if manifest is None:
        raise StoreError(
            path=folder,
            what="the target that it shows has no manifest, so it cannot be kept",
            hint=f"Copy it if you need it, then `doit clean:{folder.name}`.",
        )
    return manifest


def _card(folder: Path) -> str:
    try:
        return (folder / views.CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _folders(store: Store) -> tuple[Path, ...]:
    return tuple(store.models / name for name in sorted(NAMES))
