"""Deleting what nobody needs. `plan_gc` decides, purely; `apply_gc` acts on what is still so.

Needed: what the root keys lead to (what the caller declares), what `needs` says that others need, what is
pinned, and whatever is younger than a grace period or than a running build. Blobs that no record speaks of
go too, but never while a build runs: it may be about to write the record. Doubt leaks space, it never
deletes. What was measured stays unless the policy says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from builder.errors import GcRefused
from builder.keys import Digest, Key
from builder.store import blobs, locks, records, tmp, views
from builder.store.care.inventory import Inventory, View, survey
from builder.store.care.policy import GcPlan, Policy
from builder.store.disk import durable
from builder.store.layout import Store
from builder.store.types import Blob

_SECOND = 1_000_000_000
_DAY = 86_400

_T = TypeVar("_T")


@dataclass(frozen=True)
class Collected:
    """What a gc deleted."""

    blobs: int
    bytes: int


@dataclass(frozen=True)
class _Holder:
    """A manifest, or a record that belongs to none: keeps its blobs until it is evicted."""

    used_ns: int
    key: Key
    digests: frozenset[Digest]


def plan_gc(
    inventory: Inventory,
    roots: Iterable[Key],
    policy: Policy,
    now_ns: int,
    checkout: Path | None = None,
    declared: Collection[str] | None = None,
) -> GcPlan:
    """Decides what goes.

    `roots`: the keys of everything that `checkout` (the caller's) declares now. `declared`: the names of its
    targets, whose views alone stay; None: nothing is known of names.

    Raises GcRefused when there are no roots and the policy does not allow that.
    """
    own = frozenset(roots)
    if not own and not policy.allow_no_roots:
        raise GcRefused(what="no target is declared, so everything would be deleted")
    live = own.union(*(need.keys for need in inventory.needs))
    # What a running build has made or used is young: the next step of that run may need it.
    begun = (session.started_ns - 1 for session in inventory.sessions)
    young = min([now_ns - int(policy.grace_s * _SECOND), *begun])
    needed = _needed(inventory, live, young)
    holders = _holders(inventory, live, needed, young)
    orphans = _orphans(inventory, young)
    start = sum(blob.size for blob in inventory.blobs.values()) - _bytes(inventory, orphans)
    evicted, gone, left = _evict(inventory, holders, needed, policy, now_ns, start)
    gone |= orphans
    keys = frozenset(holder.key for holder in evicted)
    manifests = tuple(held.manifest for key, held in sorted(inventory.manifests.items()) if key in keys)
    temporaries = tuple(inventory.temporaries)
    unneeded = _unneeded_results(inventory, live, young)
    return GcPlan(
        views=_dead_views(inventory, keys, live, young, declared),
        manifests=manifests,
        records=_dead_records(inventory, live, young, gone),
        blobs=tuple(Blob(digest, inventory.blobs[digest].size) for digest in sorted(gone)),
        temporaries=temporaries,
        bytes=_bytes(inventory, gone) + sum(inventory.temporaries.values()),
        kept_bytes=left,
        over=max(0, left - policy.max_bytes) if policy.max_bytes is not None else 0,
        roots=own,
        policy=policy,
        checkout=checkout,
        declared=None if declared is None else frozenset(declared),
        now_ns=now_ns,
        results=unneeded if policy.results else (),
        spare_results=len(unneeded),
    )


def with_fresh(inventory: Inventory, plan: GcPlan) -> GcPlan:
    """The plan with what only its grace period keeps, for a person to read: nothing is decided by it."""
    grace_s = plan.policy.grace_s
    if not grace_s:
        return plan
    policy = replace(plan.policy, grace_s=0.0)
    at_once = plan_gc(inventory, plan.roots, policy, plan.now_ns, plan.checkout, plan.declared)
    until = _last_use(inventory, at_once) + int(grace_s * _SECOND)
    return replace(plan, fresh_bytes=max(0, at_once.bytes - plan.bytes), fresh_until_ns=until)


def _last_use(inventory: Inventory, plan: GcPlan) -> int:
    """When something of what goes was last used, in ns."""
    times = [inventory.manifests[manifest.key].used_ns for manifest in plan.manifests]
    times += [inventory.records[key].written_ns for key in plan.records]
    times += [inventory.blobs[blob.digest].changed_ns for blob in plan.blobs]
    return max(times, default=0)


def apply_gc(store: Store, plan: GcPlan, on_freed: Callable[[int], None] | None = None) -> Collected:
    """Deletes what was planned and is still unneeded now that no build can begin; views first, blobs last.

    `on_freed` gets the bytes of each blob as it goes. Needs no free space. Raises StoreError; it can
    simply be run again.
    """
    with locks.gc_lock(store):
        found = survey(store, plan.checkout)
        now = plan_gc(found, plan.roots, plan.policy, plan.now_ns, plan.checkout, plan.declared)
        with durable.explained(store.root):
            for folder in _both(plan.views, now.views):
                views.remove(store, folder)
            for key in _both(_keys(plan), _keys(now)):
                records.manifest_path(store, key).unlink(missing_ok=True)
            for key in _both(plan.records, now.records):
                records.path(store, key).unlink(missing_ok=True)
            for path in _both(plan.results, now.results):
                path.unlink(missing_ok=True)
            count = freed = 0
            for blob in _both(plan.blobs, now.blobs):
                blobs.path(store, blob.digest).unlink(missing_ok=True)
                count, freed = count + 1, freed + blob.size
                if on_freed is not None:
                    on_freed(blob.size)
        return Collected(count, freed + tmp.sweep(store))


def _needed(inventory: Inventory, live: frozenset[Key], young: int) -> set[Digest]:
    """Blobs that must stay."""
    needed: set[Digest] = set()
    for key, held in inventory.manifests.items():
        if key in live or key in inventory.pinned or held.used_ns > young:
            needed |= held.manifest.digests
    for key, record in inventory.records.items():
        if key in live or record.written_ns > young:
            needed.add(record.digest)
    if inventory.sessions:  # a build that found its bytes in the store has moved their ctime
        start = min(session.started_ns for session in inventory.sessions)
        needed |= {digest for digest, blob in inventory.blobs.items() if blob.changed_ns >= start}
    return needed


def _holders(inventory: Inventory, live: frozenset[Key], needed: set[Digest], young: int) -> list[_Holder]:
    """What can be evicted, least recently used first."""
    found = []
    in_manifests: set[Digest] = set()
    for key, held in inventory.manifests.items():
        in_manifests |= held.manifest.digests
        if key not in live and key not in inventory.pinned and held.used_ns <= young:
            found.append(_Holder(held.used_ns, key, held.manifest.digests))
    for key, record in inventory.records.items():
        if record.digest not in in_manifests and record.digest not in needed:
            found.append(_Holder(record.written_ns, key, frozenset([record.digest])))
    return sorted(found, key=lambda holder: (holder.used_ns, holder.key))


def _orphans(inventory: Inventory, young: int) -> set[Digest]:
    """Blobs that nothing speaks of; none while a build runs or while something that may cannot be read."""
    if inventory.sessions or inventory.damaged:
        return set()
    spoken: set[Digest] = {record.digest for record in inventory.records.values()}
    for held in inventory.manifests.values():
        spoken |= held.manifest.digests
    return {d for d, blob in inventory.blobs.items() if d not in spoken and blob.changed_ns <= young}


def _evict(
    inventory: Inventory,
    holders: list[_Holder],
    needed: set[Digest],
    policy: Policy,
    now_ns: int,
    total: int,
) -> tuple[list[_Holder], set[Digest], int]:
    """The holders that go, the blobs that nobody holds then, and the bytes that are left."""
    held_by = Counter(digest for holder in holders for digest in holder.digests)
    expired = _expiry(policy, now_ns)
    evicted: list[_Holder] = []
    gone: set[Digest] = set()
    for holder in holders:
        too_much = policy.max_bytes is not None and total > policy.max_bytes
        if not (too_much or holder.used_ns <= expired):
            break  # the rest was used more recently
        evicted.append(holder)
        held_by.subtract(holder.digests)
        freed = {d for d in holder.digests if held_by[d] == 0 and d not in needed and d in inventory.blobs}
        gone |= freed
        total -= _bytes(inventory, freed)
    return evicted, gone, total


def _expiry(policy: Policy, now_ns: int) -> int:
    """What was last used by then goes; 0 when age alone is no reason."""
    if policy.keep_days is None and policy.max_bytes is not None:
        return -1
    return now_ns - int((policy.keep_days or 0) * _DAY * _SECOND)


def _dead_records(
    inventory: Inventory, live: frozenset[Key], young: int, gone: set[Digest]
) -> tuple[Key, ...]:
    return tuple(
        key
        for key, record in sorted(inventory.records.items())
        if key not in live
        and record.written_ns <= young
        and (record.digest in gone or record.digest not in inventory.blobs)
    )


def _dead_views(
    inventory: Inventory,
    evicted: frozenset[Key],
    live: frozenset[Key],
    young: int,
    declared: Collection[str] | None,
) -> tuple[Path, ...]:
    """Views of manifests that go or are long gone, and views under names that are not declared any more.

    What nobody declares and the policy keeps stays a folder that can be loaded.
    """

    def dead(view: View) -> bool:
        if view.released or view.key is None:
            return False
        if view.key in evicted:
            return True
        if view.changed_ns > young or view.key in inventory.pinned:
            return False
        lost = view.key not in inventory.manifests and view.key not in live
        undeclared = view.mine and declared is not None and view.folder.name not in declared
        return lost or (undeclared and view.key in live)

    return tuple(view.folder for view in inventory.views if dead(view))


def _unneeded_results(inventory: Inventory, live: frozenset[Key], young: int) -> tuple[Path, ...]:
    return tuple(
        path
        for path, used_ns in sorted(inventory.results.items())
        if path.stem not in live and used_ns <= young
    )


def _keys(plan: GcPlan) -> tuple[Key, ...]:
    return tuple(manifest.key for manifest in plan.manifests)


def _bytes(inventory: Inventory, digests: Iterable[Digest]) -> int:
    return sum(inventory.blobs[digest].size for digest in digests)


def _both(planned: tuple[_T, ...], now: tuple[_T, ...]) -> list[_T]:
    still = set(now)
    return [item for item in planned if item in still]
