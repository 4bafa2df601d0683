"""Digests of files outside the store by their stat, so that 57 GB are not read to learn that nothing changed.

A cache: a missing, damaged, locked or read-only database costs time and nothing else. A row carries a
check of itself, so a flipped byte in it is no hit. Rows are valid while (size, mtime, ctime, inode) are what
they were; a file that changed within RACY_NS before it was hashed could change again unseen, and is hashed
again (the ctime counts, which no tool can set back).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builder.keys import Digest, digest_bytes
from builder.store import blobs
from builder.store.disk.identity import Identity, identity
from builder.store.layout import Store

RACY_NS = 2_000_000_000
_TIMEOUT_S = 2.0
_SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS files (
  path TEXT PRIMARY KEY, stat TEXT, recorded INTEGER, digest TEXT, sum TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (
  kind TEXT, key TEXT, value BLOB, sum TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID;
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class StatCache:
    """The cache of one store, opened when first asked. Usable from several threads and processes.

    No method raises because of the database.
    """

    def __init__(self, store: Store) -> None:
        self._path = store.state
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def __getstate__(self) -> dict[str, object]:
        """For a process that is spawned: it opens the database itself, and locks nobody else's lock."""
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _connection=None, _owner=0)

    def known(self, path: Path) -> Digest | None:
        """The digest of a file if it is certain without reading it. Raises OSError from `path`."""
        return self._lookup(path, path.stat())

    def digest(self, path: Path, on_progress: Callable[[int], None] | None = None) -> Digest:
        """The digest of a file, hashed if it is not known; `on_progress` gets the bytes of each piece.

        Raises OSError from `path`.
        """
        before = path.stat()
        found = self._lookup(path, before)
        if found is not None:
            return found
        recorded = time.time_ns()
        digest = blobs.hash_file(path, on_progress).digest
        self.note(path, identity(before), recorded, digest)
        return digest

    def note(self, path: Path, before: Identity, started: int, digest: Digest) -> None:
        """Remembers the digest of what was read of a file from `started` on (time.time_ns), if the file is
        still what it was `before`. Raises OSError from `path`.
        """
        if identity(path.stat()) == before:
            row = (os.path.abspath(path), before.text, started, digest)  # noqa: PTH100 links stay
            self._execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*row, _sum(*row)))

    def get(self, kind: str, key: str) -> bytes | None:
        """A derived fact that `put` remembered, if it still has it."""
        rows = self._execute("SELECT value, sum FROM facts WHERE kind = ? AND key = ?", (kind, key))
        if not rows:
            return None
        value, check = rows[0]
        return value if isinstance(value, bytes) and check == _sum(kind, key, value) else None

    def put(self, kind: str, key: str, value: bytes) -> None:
        """Remembers a derived fact, perhaps."""
        row = (kind, key, value)
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", (*row, _sum(*row)))

    def forget(self, kind: str, key: str) -> None:
        """Forgets a derived fact."""
        self._execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))

    def close(self) -> None:
        """Closes the database; the next call opens it again."""
        with self._lock:
            self._drop_connection()

    def _lookup(self, path: Path, status: os.stat_result) -> Digest | None:
        name = os.path.abspath(path)  # noqa: PTH100 links stay
        rows = self._execute("SELECT stat, recorded, digest, sum FROM files WHERE path = ?", (name,))
        if not rows:
            return None
        known, recorded, digest, check = rows[0]
        if known != identity(status).text or check != _sum(name, known, recorded, digest):
            return None
        if _is_racy(status, recorded):
            return None
        return Digest(digest)

    def _execute(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """The rows; none when the database fails, which is then made anew where it is damaged."""
        with self._lock:
            try:
                return self._connect().execute(statement, values).fetchall()
            except sqlite3.OperationalError:  # locked, read-only, full, no table: do without
                return []
            except (sqlite3.Error, OSError, UnicodeError):
                self._start_over()
                return []

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None and self._owner == os.getpid():
            return self._connection
        self._connection, self._owner = _open(self._path), os.getpid()
        return self._connection

    def _start_over(self) -> None:
        self._drop_connection()
        for suffix in ("", "-wal", "-shm"):
            try:
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            except OSError:
                return

    def _drop_connection(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None


def _open(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError (not Operational) for a damaged or older database."""
    connection = sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError("another version's cache")
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError:
        connection.close()
        return _open_frozen(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _open_frozen(path: Path) -> sqlite3.Connection:
    """For a store on a read-only file system, where WAL cannot make its side files."""
    uri = f"file:{path.as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _is_racy(status: os.stat_result, recorded: int) -> bool:
    """Whether a file may have changed after it was read, with no trace in its times."""
    return status.st_ctime_ns > recorded - RACY_NS


def _sum(*row: object) -> str:
    return digest_bytes(repr(row).encode("utf-8", "surrogatepass"))[:16]
