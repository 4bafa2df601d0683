"""The sources as they look before a base is read: the stat of each shard stands in the place of its digest.

Keys that are made from this are provisional. They hold for as long as nobody touches the files. So do the
digests that a stat cache remembers, and for the same reason.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from builder.keys import Digest, make_key
from builder.sources.catalog import Catalog
from builder.store.disk.identity import identity
from builder.store.statcache import RACY_NS
from builder.weights.structure import Structure


@dataclass
class Unread(Catalog):
    """A catalog for which the digests of `shards` are known, which they are not.

    once: makes keys that no other run makes. structures: of bases, by the digest of their weights.
    """

    shards: frozenset[Path] = frozenset()
    once: str = ""
    structures: dict[Digest, Structure] = field(default_factory=dict)

    def known_digest(self, path: Path) -> Digest | None:
        if path not in self.shards:
            return super().known_digest(path)
        return Digest(make_key("unread/1", os.path.abspath(path), identity(path.stat()).text, self.once))  # noqa: PTH100 links stay

    def structure(self, weights: Digest) -> Structure | None:
        return self.structures.get(weights) or super().structure(weights)


def unread(catalog: Catalog, shards: frozenset[Path]) -> Unread:
    """The catalog with these shards unread. Raises OSError.

    Files that were just written could change again and look the same. For these, keys hold for this run only.
    """
    fresh = time.time_ns() - RACY_NS
    racy = any(path.stat().st_ctime_ns > fresh for path in shards)
    once = os.urandom(16).hex() if racy else ""
    return Unread(catalog.spec, catalog.store, catalog.cache, shards=shards, once=once)
