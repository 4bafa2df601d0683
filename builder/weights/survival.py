"""What the records say of survival, summed up. Pure; `builder.engine.survival` measures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Survival:
    """Sums over paths. `db`: adapter's delta against quantization error, 10 log10(|D|^2 / |E|^2), over the
    adapted paths; `cosine`: between the delta and what remains of it; `error`: |E| / |W| over all paths."""

    db: float | None
    cosine: float | None
    error: float


Row = tuple[str, float, float, float, float, float]


def rows(text: str) -> list[Row]:
    """The paths of one record's `survival` line. Raises ValueError for other text."""
    return [(str(path), *map(float, rest)) for path, *rest in json.loads(text)]  # type: ignore[misc]


def total(paths: Iterable[Row]) -> Survival | None:
    """All paths as one; None if nothing was quantized."""
    everything = list(paths)
    weight, lost = sum(row[1] for row in everything), sum(row[3] for row in everything)
    if not weight:
        return None
    adapted = [row for row in everything if row[2] > 0]
    delta, error = sum(row[2] for row in adapted), sum(row[3] for row in adapted)
    kept, remains = sum(row[4] for row in adapted), sum(row[5] for row in adapted)
    relative = math.sqrt(lost / weight)
    if not delta:
        return Survival(None, None, relative)
    db = 10 * math.log10(delta / error) if error else None
    return Survival(db, kept / math.sqrt(delta * remains) if remains else None, relative)
