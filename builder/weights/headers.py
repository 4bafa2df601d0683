"""The types and shapes of a checkpoint's tensors, read unchecked: mlx decides whether the files are sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_LONGEST = 1 << 27  # bytes


class Header(NamedTuple):
    """A tensor's safetensors code and shape."""

    dtype: str
    shape: tuple[int, ...]


def headers(directory: Path) -> dict[str, Header]:
    """Name -> header of every tensor of every shard. A shard that cannot be read has none."""
    found: dict[str, Header] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                table = json.loads(file.read(size)) if size <= _LONGEST else {}
            for name, entry in table.items():
                if name != "__metadata__":
                    found[name] = Header(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found
