"""Sums what records say about survival. Pure. `builder.engine.survival` does the measuring."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Survival:
    """How much of an adapter is left after quantization, over several paths.

    `db` compares the adapter's delta D with the quantization error E: 10 log10(|D|^2 / |E|^2), over the
    adapted paths. `cosine` is the cosine between D and what remains of D, over the adapted paths. `error` is
    |E| / |W| over all paths. `db` and `cosine` are None where no path is adapted or the divisor is zero.
    """

    db: float | None
    cosine: float | None
    error: float


# Path, weight, delta, error, kept and remains, as `builder.engine.survival` defines them.
Row = tuple[str, float, float, float, float, float]


def rows(text: str) -> list[Row]:
    """The paths of one record's `survival` line. Raises ValueError for other text."""
    return [(str(path), *map(float, rest)) for path, *rest in json.loads(text)]  # type: ignore[misc]


def total(paths: Iterable[Row]) -> Survival | None:
    """The survival over all paths together. None if nothing was quantized."""
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
