"""What a gc is asked for, and what it decided: values between the command, the decision and the deletion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from builder.keys import Key
from builder.store.types import Blob, Manifest


@dataclass(frozen=True)
class Policy:
    """What to keep beyond the roots.

    Without `max_bytes`, everything unneeded that was not used for `keep_days` goes (None: 0 days). With it,
    the least recently used goes until the blobs fit, and older than `keep_days` only if that is given.
    `results`: what was measured of nothing declared goes too.
    """

    keep_days: float | None = None
    max_bytes: int | None = None
    grace_s: float = 3600.0
    allow_no_roots: bool = False
    results: bool = False


@dataclass(frozen=True)
class GcPlan:
    """What goes. `bytes` counts blobs and temporaries, `over` is what the roots hold beyond `max_bytes`.

    `spare_results`: how many results nothing declared needs; they go only where the policy says so.
    `fresh_bytes`: what only the grace period keeps, the last of it until `fresh_until_ns`.
    """

    views: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    records: tuple[Key, ...]
    blobs: tuple[Blob, ...]
    temporaries: tuple[Path, ...]
    bytes: int
    kept_bytes: int
    over: int
    roots: frozenset[Key]
    policy: Policy
    checkout: Path | None
    declared: frozenset[str] | None
    now_ns: int
    results: tuple[Path, ...] = ()
    spare_results: int = 0
    fresh_bytes: int = 0
    fresh_until_ns: int = 0

    @property
    def is_empty(self) -> bool:
        gone = (self.views, self.manifests, self.records, self.blobs, self.temporaries, self.results)
        return not any(gone)
