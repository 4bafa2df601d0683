"""Leases: what running pushes are about to rely on, for a gc that runs at the same time.

A push writes its lease first and then looks for a gc. A gc writes v1/gc.json first and then looks for
leases. So at least one of them sees the other: the push waits, or the gc keeps what the lease names. All
ages are told by the server's clock alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from builder.console.events import Emit, Note
from builder.keys import Digest, Key, is_digest
from builder.remote import layout
from builder.remote.transport import Entry, RemoteError, Transport
from builder.store import seals

VOID_S = 3600.0  # without a renewal for so long, a lease is that of a dead push
GC_VOID_S = 600.0  # the same of a gc
_RENEW_S = 60.0
_LOOK_S = 2.0


class Unreadable(RemoteError):
    """remote {remote}: {path} cannot be read, so nobody knows what it needs."""

    hint = "Nothing was deleted. Delete that object yourself if nothing is being pushed."


class LeaseLost(RemoteError):
    """remote {remote}: this push stood still for so long that a gc no longer knew of it."""

    hint = "Nothing was made visible that is not whole. Run the same command again."


@dataclass(frozen=True)
class Lease:
    """What somebody's push relies on: keys of texts, and blobs. `modified` by the server's clock."""

    path: str
    keys: frozenset[Key]
    digests: frozenset[Digest]
    modified: float


@dataclass
class Held:
    """A lease of our own. `renewed` by our clock, which also runs while a laptop sleeps."""

    transport: Transport
    path: str
    data: bytes
    renewed: float
    lost: bool = False

    def renew(self) -> None:
        """Raises RemoteError. What was not renewed for long is lost for good, because a gc may have
        passed.
        """
        self.lost = self.lost or time.time() - self.renewed > VOID_S / 2
        if not self.lost:
            started = time.time()
            self.transport.write(self.path, self.data)
            self.renewed = started

    def require(self) -> None:
        """Raises LeaseLost where a gc may no longer have known of this push."""
        self.lost = self.lost or time.time() - self.renewed > VOID_S / 2
        if self.lost or self.transport.read(self.path) != self.data:
            raise LeaseLost(remote=self.transport.name)


@contextmanager
def lease(transport: Transport, keys: Iterable[Key], digests: Iterable[Digest], emit: Emit) -> Iterator[Held]:
    """Holds a lease, renewed by a thread. Waits for a gc that runs. Raises RemoteError."""
    text = json.dumps({"keys": sorted(keys), "digests": sorted(digests)}) + "\n"
    held = Held(transport, layout.lease(os.urandom(16).hex()), seals.sealed(text), time.time())
    held.renew()
    try:
        with repeated(held.renew):
            _wait_for_gc(held, emit)
            yield held
    finally:
        with suppress(RemoteError):
            transport.delete([held.path])


@contextmanager
def repeated(renew: Callable[[], object]) -> Iterator[None]:
    """Calls a function every minute, in a thread. Its errors of a remote do not matter."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_RENEW_S):
            with suppress(RemoteError):
                renew()

    threading.Thread(target=run, name="renew", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def leases_of(transport: Transport, entries: Iterable[Entry]) -> tuple[Lease, ...]:
    """All leases among these objects. Raises Unreadable."""
    found = []
    for entry in entries:
        if not entry.path.startswith(layout.LEASES):
            continue
        data = transport.read(entry.path)
        if data is None:  # it has just ended
            continue
        try:
            said = json.loads(seals.unsealed(data) or "")
            keys = frozenset(Key(key) for key in said["keys"] if is_digest(key))
            digests = frozenset(Digest(digest) for digest in said["digests"] if is_digest(digest))
        except (ValueError, KeyError, TypeError):
            raise Unreadable(remote=transport.name, path=entry.path) from None
        found.append(Lease(entry.path, keys, digests, entry.modified))
    return tuple(found)


def _wait_for_gc(held: Held, emit: Emit) -> None:
    transport, told = held.transport, False
    while (gc := transport.head(layout.GC)) is not None:
        held.renew()  # so that its time is now, on the server's clock
        here = transport.head(held.path)
        if here is None or here.modified - gc.modified > GC_VOID_S:
            return
        if not told:
            emit(Note(f"waiting for a gc of remote {transport.name} to end"))
            told = True
        time.sleep(_LOOK_S)
