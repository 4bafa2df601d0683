"""What a remote has of targets that are not here, as values. `builder.build.outlook` asks the remotes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.keys import Key


@dataclass(frozen=True)
class Available:
    """What a run would pull of one target: `nbytes` from `remote`, with `blocks` of its blocks.

    `keys`: the records that are then here. `whole`: nothing is left to build.
    """

    remote: str
    nbytes: int
    blocks: int
    keys: frozenset[Key]
    whole: bool


Availables = Mapping[str, Available]  # by target
NOTHING: Availables = {}
