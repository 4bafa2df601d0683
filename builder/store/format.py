"""The version of a store's format: opening a store, making a new one, and migrating an older one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from builder.errors import StoreError
from builder.store import tmp
from builder.store.disk import durable
from builder.store.layout import Store

FORMAT = 1

# Format n -> what turns it into n + 1, in place; interrupted, it must be safe to run again.
MIGRATIONS: Mapping[int, Callable[[Path], None]] = {}


def open_store(root: Path) -> Store:
    """The store at `root`, created when there is none, migrated when its format is older.

    Writes nothing when the store exists at the current format, so a read-only store can be read. The
    other folders appear when something is first put in them.

    Raises StoreError for a version this program does not know, and when the folder cannot be made.
    """
    store = Store(root.absolute())
    version = _read_version(store)
    while version < FORMAT:
        with durable.explained(store.root):
            MIGRATIONS[version](store.root)
            version += 1
            _write_version(store, version)
    return store


def _read_version(store: Store) -> int:
    with durable.explained(store.root):
        try:
            text = store.version.read_bytes()
        except FileNotFoundError:
            _ignored_by_git(store)
            durable.make_folder(store.tmp)
            durable.make_folder(store.locks)
            (store.locks / "gc").touch()  # so that gc on a full disk needs no new file
            _write_version(store, FORMAT)
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


def _ignored_by_git(store: Store) -> None:
    """A new store in a checkout must not be committed. A folder that holds something is its owner's."""
    durable.make_folder(store.root)
    if not any(store.root.iterdir()):
        (store.root / ".gitignore").write_text("*\n", encoding="utf-8")


def _write_version(store: Store, number: int) -> None:
    with tmp.new_file(store) as staged:
        durable.write_all(staged.fd, memoryview(f"{number}\n".encode()))
        staged.keep_as(store.version)
