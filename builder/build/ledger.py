"""Where a pass looks for what was made, and notes what it makes: records in the store.

The first pass over a base does not know the keys yet, because they hold the digests of the files that it
reads. It notes what it makes under provisional keys, which hold the stat of each file in place of its digest.
These notes are kept where digests that were told by a stat are kept, and are worth as much as these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from builder.keys import Digest, Key
from builder.plan.types import Action, TargetPlan
from builder.store import blobs, records
from builder.store.holdings import usable_record
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.store.types import Record, record_to_text

_KIND, _BEGUN = "first pass/1", "first pass begun"


@dataclass(frozen=True)
class Ledger:
    """The records of the store."""

    store: Store

    def record(self, key: Key) -> Record | None:
        """What was made for a key, if its blob is there."""
        return usable_record(self.store, key)

    def write(self, record: Record) -> None:
        """Notes a blob that is in the store. Raises StoreError."""
        records.write(self.store, record)

    def missing(self, plan: TargetPlan) -> tuple[Action, ...]:
        """The actions of a target that are to be run."""
        return tuple(action for action in plan.actions if self.record(action.key) is None)


@dataclass(frozen=True)
class Provisional(Ledger):
    """Notes under keys that hold no digest of the base. A note that is lost is made again."""

    cache: StatCache

    def record(self, key: Key) -> Record | None:
        text = self.cache.get(_KIND, key)
        found = records.parse_record(text.decode(), key) if text else None
        return found if found is not None and blobs.has(self.store, found.blob) else None

    def write(self, record: Record) -> None:
        self.cache.put(_KIND, record.key, record_to_text(record).encode())

    def begin(self, base: Digest) -> None:
        """There will be notes about the base with these provisional weights."""
        self.cache.put(_BEGUN, base, b"1")

    def is_begun(self, base: Digest) -> bool:
        """Whether a first pass over this base was not finished."""
        return self.cache.get(_BEGUN, base) is not None

    def end(self, base: Digest, keys: Iterable[Key]) -> None:
        """The notes of these keys became records."""
        for key in keys:
            self.cache.forget(_KIND, key)
        self.cache.forget(_BEGUN, base)
