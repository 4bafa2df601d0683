"""The version of a store's format: opening a store, making a new one, and migrating an older one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from builder.errors import StoreError
from builder.store import views
from builder.store.disk import durable
from builder.store.layout import Store

FORMAT = 2
# What may lie in the folder of a new store: left by git, by a desktop, or by us when we died while making it.
_EMPTY = frozenset({".gitkeep", ".gitignore", ".DS_Store", ".localized"})
_DRAFT = ".version."


class StoreGone(StoreError):
    """store {path}: {what}."""

    hint = "Mount its disk. If the store is gone for good: `builder init --store` makes a new, empty one."


def _keys_of_format_1(root: Path) -> None:
    """Format 2 has other keys. Imports were views by name, and a name could be given to something else.

    Blobs, records and manifests stay: `builder.build.adoption` takes over what proves itself.
    """
    store = Store(root)
    for folder in sorted(store.bases.iterdir()) if store.bases.is_dir() else ():
        if views.is_view(folder):
            views.remove(store, folder)
    (root / FORMER).write_text("1\n", encoding="utf-8")


FORMER = "former"  # says that a store holds records of an older format
# Format n -> what turns it into n + 1, in place; interrupted, it must be safe to run again.
MIGRATIONS: Mapping[int, Callable[[Path], None]] = {1: _keys_of_format_1}


def open_store(root: Path, checkout: str = "", *, create: bool = True, parents: bool = True) -> Store:
    """The store at `root`, created when there is none, migrated when its format is older.

    A store is created in a folder that is empty or not there. An existing store is known by its version file.
    Writes nothing when the store exists at the current format, so a read-only store can be read. The other
    folders appear when something is first put in them.

    Raises StoreError: a folder that holds something else, a version that this program does not know, the
    disk. Raises StoreGone where there is no store, without `create`, or without `parents` where even the
    folder around is missing.
    """
    store = Store(root.absolute(), checkout)
    version = _read_version(store, create, parents)
    while version < FORMAT:
        with durable.explained(store.root):
            MIGRATIONS[version](store.root)
            version += 1
            _write_version(store, version)
    return store


def _read_version(store: Store, create: bool, parents: bool) -> int:
    with durable.explained(store.root):
        try:
            text = store.version.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            _create(store, create, parents)
            return FORMAT
    known = {f"{number}\n".encode(): number for number in (*MIGRATIONS, FORMAT)}
    if text not in known:
        shown = text[:32].decode(errors="replace").strip()
        raise StoreError(
            path=store.root,
            what=f"its format is {shown!r}, but this program reads {FORMAT}",
            hint="Use the program version that wrote it, or declare another [store] path.",
        )
    return known[text]


def _create(store: Store, create: bool, parents: bool) -> None:
    """A new store; the version file is written first, for it says whose folder this is."""
    if not create:
        raise StoreGone(path=store.root, what="there was a store here, and it is gone")
    if not parents and not store.root.parent.is_dir():
        raise StoreGone(path=store.root, what=f"the folder {store.root.parent} does not exist")
    found = sorted(entry.name for entry in store.root.iterdir()) if store.root.is_dir() else []
    if store.root.is_symlink() and not store.root.exists():
        raise StoreGone(path=store.root, what=f"it is a link to {store.root.readlink()}, which is not there")
    if os.path.lexists(store.root) and not store.root.is_dir():
        raise StoreError(path=store.root, what="it is not a folder")
    if foreign := [name for name in found if name not in _EMPTY and not name.startswith((_DRAFT, "._"))]:
        raise StoreError(
            path=store.root,
            what=f'it is not a store and not empty (it holds "{foreign[0]}")',
            hint="Declare a folder of its own for the store: [store] path.",
        )
    durable.make_folder(store.root)
    if not found:
        (store.root / ".gitignore").write_text("*\n", encoding="utf-8")  # not to be committed
    _write_version(store, FORMAT)
    for name in found:
        if name.startswith(_DRAFT):
            (store.root / name).unlink(missing_ok=True)
    durable.make_folder(store.tmp)
    durable.make_folder(store.locks)
    (store.locks / "gc").touch()  # so that gc on a full disk needs no new file


def _write_version(store: Store, number: int) -> None:
    draft = store.root / f"{_DRAFT}{os.getpid()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        durable.write_all(fd, memoryview(f"{number}\n".encode()))
        durable.sync_file(fd)
    finally:
        os.close(fd)
    durable.move_into_place(draft, store.version)
