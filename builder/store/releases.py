"""Released targets: views under a name of their own, and the former ones beside them.

A view whose folder is not named after its manifest is a release. It says itself what it shows, so nothing
else has to be kept in step: gc and pruning keep the bytes of whatever a release shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from builder.errors import StoreError
from builder.keys import Key
from builder.store import records, tmp, views
from builder.store.disk import durable, swap
from builder.store.layout import Store
from builder.store.types import Manifest

FORMER = ".former"


def released(store: Store) -> Mapping[str, Key]:
    """Folder name -> key of what it shows, of every release and its former. Raises StoreError."""
    with durable.explained(store.models):
        return dict(_released(store))


def move(store: Store, name: str, manifest: Manifest, card: str = "") -> None:
    """Makes the release `name` the view of `manifest`; what it showed before becomes the former one.

    `card`: its README.md.

    Every moment can be the last: the release shows what it did or `manifest`, and what it showed stays
    somewhere. Raises StoreError.
    """
    folder, former = store.models / name, store.models / f"{name}{FORMER}"
    shown = views.current_key(folder)
    if shown is not None and shown != manifest.key:
        views.materialize(store, former, manifest_of(store, folder, shown), _card(folder))
    views.materialize(store, folder, manifest, card)


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


def _released(store: Store) -> Iterator[tuple[str, Key]]:
    if not store.models.is_dir():
        return
    for folder in sorted(store.models.iterdir()):
        key, name = views.current_key(folder), views.current_name(folder)
        if key is not None and name is not None and name != folder.name:
            yield folder.name, key
