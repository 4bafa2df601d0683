"""Who may build what, and who is building: locks that die with their process.

Order, so that nothing can deadlock: the stripes of a publication, of a share, of experts, of a search, of a
choice, and of what is built, in this order, and each kind sorted; or `measuring`, under which no stripe is
taken. Then `gc_lock`, which is held for moments only, and under which no other lock is taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from builder.errors import StoreError
from builder.keys import Key
from builder.store import seals, tmp
from builder.store.disk import durable
from builder.store.layout import Store

if TYPE_CHECKING:
    from filelock import FileLock

Kind = Literal["", "choice-", "search-", "routing-", "share-", "publication-"]
STRIPES = 64  # each is a file descriptor while it is held, and macOS starts processes with 256
_POLL_S = 0.02
_HELD: set[Path] = set()  # the locks that threads of this process hold
_OWN: ContextVar[frozenset[str]] = ContextVar("sessions", default=frozenset())  # of this thread


@dataclass(frozen=True)
class Session:
    """A running build, registered: gc and prune leave alone what its keys lead to."""

    id: str
    keys: frozenset[Key]
    started_ns: int  # by the file system's clock


@contextmanager
def acquire(
    store: Store,
    keys: Iterable[Key],
    on_wait: Callable[[], None] | None = None,
    kind: Kind = "",
) -> Iterator[None]:
    """Holds the locks of all `keys`, waiting for others; each thread and process counts as another.

    Keys share locks (stripes), so two unrelated builds may wait for each other; a thread that holds some
    must not acquire more of their kind (RuntimeError when they overlap). Who builds while a choice or a
    search is held says so by `kind`: the stripes of each kind are its own. `on_wait` is called once, before
    the first wait for another process. Threads of one process wait for each other without a word: that is no
    news.
    Look at the store again after this returned: what was missing may have been built meanwhile.

    Raises StoreError.
    """
    with ExitStack() as held:
        for stripe in sorted({int(key[:2], 16) % STRIPES for key in keys}):
            if _take(held, store, f"{kind}{stripe:02x}", on_wait):
                on_wait = None
        yield


@contextmanager
def gc_lock(store: Store) -> Iterator[None]:
    """The short lock that orders deleting, registering a build, and reusing a blob. Raises StoreError."""
    with ExitStack() as held:
        _take(held, store, "gc", None)
        yield


@contextmanager
def measuring(store: Store, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """One evaluation at a time: two models may not fit into memory, and would spoil each other's timings.

    Look at the store again after this returned, as with `acquire`. Raises StoreError.
    """
    with ExitStack() as held:
        _take(held, store, "measuring", on_wait)
        yield


@contextmanager
def build_session(store: Store, roots: Iterable[Key]) -> Iterator[Session]:
    """Registers a running build with the keys of all its actions, targets and bases.

    From here to the end nothing that these keys lead to is deleted, nor any blob that no record speaks
    of yet. Look at what is present after entering, not before. Left-overs of dead builds are swept.

    Raises StoreError.
    """
    name, keys = os.urandom(16).hex(), frozenset(roots)
    text = json.dumps({"keys": sorted(keys)}) + "\n"
    file = store.locks / "builds" / f"{name}.json"
    with ExitStack() as held:
        with gc_lock(store), durable.explained(store.root):
            staged = held.enter_context(tmp.new_file(store))
            durable.write_all(staged.fd, memoryview(seals.sealed(text)))
            durable.make_folder(file.parent)
            staged.path.rename(file)  # already locked when it appears; a crash ends it, so no fsync
            session = Session(name, keys, os.fstat(staged.fd).st_mtime_ns)
        held.callback(_forget, file)
        _OWN.set(_OWN.get() | {name})
        held.callback(lambda: _OWN.set(_OWN.get() - {name}))
        tmp.sweep(store)
        yield session


def others(store: Store, but: Session | None = None) -> tuple[Session, ...]:
    """Every running build, except `but` and those of this thread. Raises StoreError like `running`."""
    return tuple(session for session in running(store, but) if session.id not in _OWN.get())


def live_sessions(store: Store, but: Session | None = None) -> tuple[frozenset[Key], ...]:
    """The keys of every running build, except `but` (one's own). Raises StoreError like `running`."""
    return tuple(session.keys for session in running(store, but))


def running(store: Store, but: Session | None = None) -> tuple[Session, ...]:
    """Every running build, except `but`; the files of dead builds are deleted on the way.

    Raises StoreError when a running build's file cannot be read: nobody knows then what it needs.
    """
    found = []
    with durable.explained(store.root):
        try:
            files = sorted((store.locks / "builds").iterdir())
        except FileNotFoundError:
            return ()
    for file in files:
        if (but is not None and file.stem == but.id) or _sweep_if_dead(file):
            continue
        session = _read_session(file)
        if session is not None:
            found.append(session)
    return tuple(found)


def _take(held: ExitStack, store: Store, name: str, on_wait: Callable[[], None] | None) -> bool:
    """Acquires locks/<name> until `held` closes; whether it waited for another process."""
    from filelock import FileLock, Timeout  # 70 ms to import

    with durable.explained(store.root):
        durable.make_folder(store.locks)
        file = store.locks / name
        lock = FileLock(file)
        waited = False
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = file not in _HELD
            if waited and on_wait is not None:
                on_wait()
            lock.acquire(poll_interval=_POLL_S)
        _HELD.add(file)
    held.callback(_release, store, lock, file)
    return waited


def _release(store: Store, lock: FileLock, file: Path) -> None:
    with durable.explained(store.root):
        _HELD.discard(file)
        lock.release()


def _forget(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


def _sweep_if_dead(file: Path) -> bool:
    """Deletes a session file that nobody holds; True when it is gone."""
    fd = tmp.try_lock(file)
    if fd is None:
        return not file.exists()
    try:
        _forget(file)
    finally:
        os.close(fd)
    return True


def _read_session(file: Path) -> Session | None:
    text = seals.read(file)
    try:
        started = file.stat().st_mtime_ns
    except FileNotFoundError:  # ended meanwhile
        return None
    if text is None:
        raise StoreError(
            path=file,
            what="a running build is registered here, but what it needs cannot be read",
            hint="Wait until it ends.",
        )
    return Session(file.stem, frozenset(Key(key) for key in json.loads(text)["keys"]), started)
