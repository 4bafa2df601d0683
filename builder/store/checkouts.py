"""What each checkout that shares the store needs: the keys it declared when it last ran.

gc keeps the roots of every checkout. One whose artifacts.toml cannot be read, or that is gone, keeps its last
known roots until it is forgotten by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from builder.errors import StoreError
from builder.keys import Key, digest_bytes
from builder.store import seals
from builder.store.disk import durable
from builder.store.disk.identity import identity_of
from builder.store.disk.names import is_hidden
from builder.store.layout import Store


@dataclass(frozen=True)
class Checkout:
    """A folder with an artifacts.toml, and the keys that it needs."""

    folder: Path
    keys: frozenset[Key]

    @property
    def exists(self) -> bool:
        return self.folder.is_dir()


def register(store: Store, folder: Path, keys: Iterable[Key]) -> None:
    """Remembers the roots of a checkout, replacing its last; writes only what changed. Raises StoreError."""
    data = {"checkout": str(folder.resolve()), "keys": sorted(set(keys))}
    text = json.dumps(data) + "\n"
    file = _file(store, folder)
    if seals.read(file) != text:
        seals.write(store, file, text)


def identity(store: Store, folder: Path) -> str:
    """Another text each time that a checkout registers something else. Empty when it has not. One stat."""
    found = identity_of(_file(store, folder))
    return found.text if found else ""


def registered(store: Store) -> tuple[Checkout, ...]:
    """Every checkout that was registered. Raises StoreError when one cannot be read: gc must not guess."""
    with durable.explained(store.root):
        try:
            files = sorted(f for f in store.roots.glob("*.json") if not is_hidden(f.name))
        except FileNotFoundError:
            return ()
    return tuple(_read(file) for file in files)


def forget(store: Store, folder: Path) -> bool:
    """Gives up the roots of a checkout; whether it was registered. Raises StoreError."""
    with durable.explained(store.root):
        try:
            _file(store, folder).unlink()
        except FileNotFoundError:
            return False
        durable.sync_folder(store.roots)
    return True


def _read(file: Path) -> Checkout:
    text = seals.read(file)
    if text is None:
        raise StoreError(
            path=file,
            what="the roots of a checkout cannot be read",
            hint="Run doit in that checkout to write them again. If it is gone for good, delete the file.",
        )
    data = json.loads(text)
    return Checkout(Path(data["checkout"]), frozenset(Key(key) for key in data["keys"]))


def _file(store: Store, folder: Path) -> Path:
    return store.roots / f"{digest_bytes(bytes(folder.resolve()))[:16]}.json"
