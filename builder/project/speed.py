"""How fast passes have been on this machine, so that a plan can say how long one will take.

Kept in the store's cache by the machine's name: a lost cache loses an estimate, nothing else.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import median

from builder.store.statcache import StatCache

_KIND = "passes/1"
_KEPT = 20


@dataclass(frozen=True)
class Pass:
    """One finished pass: bytes of base weights walked, bytes written, seconds."""

    read: int
    written: int
    seconds: float


def note(cache: StatCache, done: Pass) -> None:
    """Remembers a pass, forgetting the oldest."""
    kept = [*passes(cache), done][-_KEPT:]
    cache.put(_KIND, platform.node(), json.dumps([astuple(p) for p in kept]).encode())


def passes(cache: StatCache) -> tuple[Pass, ...]:
    """The last passes on this machine, oldest first."""
    text = cache.get(_KIND, platform.node())
    try:
        return tuple(Pass(int(r), int(w), float(s)) for r, w, s in json.loads(text)) if text else ()
    except (ValueError, TypeError):
        return ()


def estimate(known: Sequence[Pass], read: int, written: int) -> float | None:
    """Seconds that a pass will take: the median time per byte moved, or None without any record.

    A pass over a small model is mostly start-up. So passes of less than a tenth of these bytes count only
    where there are no others.
    """
    moved = read + written
    large = [p for p in known if 10 * (p.read + p.written) >= moved]
    rates = [p.seconds / (p.read + p.written) for p in large or known if p.read + p.written > 0]
    return median(rates) * moved if rates else None
