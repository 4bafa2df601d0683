"""Deleting from a remote what nobody needs: read what is there, decide, then delete. Safe beside pushes.

Needed is what roots lead to, what leases of running pushes name, and whatever is younger than a grace period.
Texts go before the blobs that they name, so a gc that is killed leaves garbage, never a lie. Doubt refuses.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from builder.console.events import Emit, Note
from builder.keys import Key, digest_bytes
from builder.remote import layout
from builder.remote.connect import require_store
from builder.remote.inventory import Inventory, Root, survey
from builder.remote.leases import GC_VOID_S, VOID_S, repeated
from builder.remote.setup import PROBES
from builder.remote.transport import RemoteError, RemoteReadOnly, Transport
from builder.store import seals

BATCH = 500  # objects between two looks at the leases
_DAY = 86400.0


class GcRuns(RemoteError):
    """remote {remote}: another gc runs, since {minutes} minutes."""

    hint = "Wait until it ends. Ten minutes without a sign of life, and it counts as dead."


class CannotGc(RemoteError):
    """remote {remote}: its server does not keep two writers apart, so nothing is deleted."""

    hint = "`builder remote check {remote}` says what is missing. Pushing and pulling are safe all the same."


@dataclass(frozen=True)
class Policy:
    """`grace` in seconds: what is younger stays. `keep_days`: older roots are given up, but for the
    newest of each target and for those of `declared` keys. None: no root is given up.
    """

    grace: float = _DAY
    keep_days: float | None = None
    declared: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class RemoteGcPlan:
    """What is deleted, in this order. `void`: leases of dead pushes. `given_up`: roots."""

    void: tuple[str, ...] = ()
    given_up: tuple[Root, ...] = ()
    texts: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    nbytes: int = 0
    kept_bytes: int = 0
    fresh: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        roots = (root.path for root in self.given_up)
        return (*self.void, *roots, *self.texts, *self.blobs, *self.leftovers)

    @property
    def is_empty(self) -> bool:
        return not self.paths


def plan_gc(held: Inventory, policy: Policy) -> RemoteGcPlan:
    """What nobody needs. Pure."""
    given_up = _given_up(held, policy)
    leases = [lease for lease in held.leases if held.now - lease.modified <= VOID_S]
    keys = {key for root in held.roots if root not in given_up for key in root.keys | {root.key}}
    keys |= {key for lease in leases for key in lease.keys}
    digests = {digest for lease in leases for digest in lease.digests}

    def is_fresh(path: str) -> bool:
        return held.now - held.entries[path].modified < policy.grace

    live = {path for path in held.names if layout.named(path) in keys or is_fresh(path)}
    digests |= {blob.digest for path in live for blob in held.names[path]}
    live |= {
        path
        for path, named in held.names.items()
        if path.startswith(layout.ACTIONS) and {blob.digest for blob in named} <= digests
    }
    texts = tuple(sorted((path for path in held.names if path not in live), key=_manifests_first))
    dead = {held.texts[path] for path in texts if path in held.texts}
    signatures = tuple(
        path for path in held.entries if path.startswith(layout.SIGNATURES) and layout.named(path) in dead
    )
    blobs, kept, fresh = [], 0, 0
    for path, entry in held.entries.items():
        if not path.startswith(layout.BLOBS):
            continue
        if layout.named(path) in digests:
            kept += entry.size
        elif is_fresh(path):
            kept, fresh = kept + entry.size, fresh + entry.size
        else:
            blobs.append(path)
    void = tuple(lease.path for lease in held.leases if lease not in leases)
    loose = tuple(path for path in held.entries if path.startswith(PROBES) and not is_fresh(path))
    gone = (*texts, *signatures, *blobs, *loose)
    return RemoteGcPlan(
        void,
        given_up,
        (*texts, *signatures),
        tuple(blobs),
        loose,
        sum(held.entries[path].size for path in gone),
        kept,
        fresh,
    )


def _given_up(held: Inventory, policy: Policy) -> tuple[Root, ...]:
    if policy.keep_days is None:
        return ()
    newest: dict[tuple[str, str], Root] = {}
    for root in sorted(held.roots, key=lambda root: root.modified):
        newest[root.project, root.target] = root
    latest = {root.key for root in newest.values()}
    return tuple(
        root
        for root in held.roots
        if held.now - root.modified > max(policy.keep_days * _DAY, policy.grace)
        and root.key not in latest
        and root.key not in policy.declared
    )


def _manifests_first(path: str) -> tuple[bool, str]:
    return (not path.startswith(layout.TARGETS), path)


# -- deleting ------------------------------------------------------------------------------------------------


def collect(transport: Transport, policy: Policy, emit: Emit) -> RemoteGcPlan:
    """Deletes what nobody needs, alone; what was deleted. Raises RemoteError."""
    if not transport.can_write:
        raise RemoteReadOnly(remote=transport.name, what=f"{transport.url} is a web server")
    if not require_store(transport).get("creates"):
        raise CannotGc(remote=transport.name)
    with _alone(transport) as clock:
        looked, plan = _look(transport, clock, policy)
        done, todo = 0, list(plan.paths)
        while todo:
            batch, todo = todo[:BATCH], todo[BATCH:]
            if done or time.time() - looked > GC_VOID_S / 2:  # who came meanwhile may need something of it
                looked, still = _look(transport, clock, policy)
                batch = [path for path in batch if path in set(still.paths)]
            transport.delete(batch)
            done += len(batch)
            emit(Note(f"{transport.name}: {done} of {len(plan.paths)} objects deleted"))
    return plan


def _look(transport: Transport, clock: _Clock, policy: Policy) -> tuple[float, RemoteGcPlan]:
    """When the look began, by our clock, and what it decides. No push can begin unseen meanwhile."""
    now, started = clock(), time.time()
    return started, plan_gc(survey(transport, now), policy)


@contextmanager
def _alone(transport: Transport) -> Iterator[_Clock]:
    """Holds v1/gc.json, for which pushes wait. The lock of a dead gc is taken over."""
    clock = _Clock(transport, seals.sealed(json.dumps({"id": os.urandom(16).hex()}) + "\n"))
    if not transport.create(layout.GC, clock.data):
        _take_over(transport, clock.data)
    try:
        with repeated(clock):
            yield clock
    finally:
        with suppress(RemoteError):
            if transport.read(layout.GC) == clock.data:
                transport.delete([layout.GC])


def _take_over(transport: Transport, data: bytes) -> None:
    """Raises GcRuns while somebody holds it."""
    former, entry = transport.read(layout.GC), transport.head(layout.GC)
    if former is None or entry is None:  # it has just ended
        if transport.create(layout.GC, data):
            return
        raise GcRuns(remote=transport.name, minutes=0)
    probe = f"{PROBES}{digest_bytes(data)[:32]}"
    transport.write(probe, data)
    here = transport.head(probe)
    transport.delete([probe])
    age = here.modified - entry.modified if here else 0.0
    if age <= GC_VOID_S or not transport.replace(layout.GC, former, data):
        raise GcRuns(remote=transport.name, minutes=round(max(age, 0.0) / 60))


@dataclass
class _Clock:
    """The server's time: that of our lock, which is written again each time somebody asks."""

    transport: Transport
    data: bytes

    def __call__(self) -> float:
        held = self.transport.replace(layout.GC, self.data, self.data)
        entry = self.transport.head(layout.GC) if held else None
        if entry is None:
            what = "another gc took over, and nothing more was deleted"
            raise RemoteError(remote=self.transport.name, what=what)
        return entry.modified
