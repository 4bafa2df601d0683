"""Targets that were asked for by name: kept until they are cleaned, whatever pruning would do.

A pin is an empty file; its name says it all.
"""

from __future__ import annotations

from builder.errors import StoreError
from builder.store.disk import durable
from builder.store.layout import Store, is_plain


def pin(store: Store, name: str) -> None:
    """Keeps the target `name`. Durable when it returns. Raises StoreError."""
    if not is_plain(name):
        raise StoreError(path=store.pins, what=f"{name!r} cannot be the name of a target")
    with durable.explained(store.root):
        durable.make_folder(store.pins)
        (store.pins / name).touch()
        durable.sync_folder(store.pins)


def unpin(store: Store, name: str) -> None:
    """Lets the target go; nothing happens when it is not pinned. Raises StoreError."""
    with durable.explained(store.root):
        try:
            (store.pins / name).unlink()
        except FileNotFoundError:
            return
        durable.sync_folder(store.pins)


def pinned(store: Store) -> frozenset[str]:
    """The names of all pinned targets. Raises StoreError when the folder cannot be read."""
    with durable.explained(store.root):
        try:
            return frozenset(file.name for file in store.pins.iterdir() if is_plain(file.name))
        except FileNotFoundError:
            return frozenset()
