"""Where a pass over a text keeps the hidden states: in memory, or else in the store's tmp/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builder.project.peaks import memory_for
from builder.project.project import Project
from builder.store import tmp

if TYPE_CHECKING:
    from builder.engine.rounding.shelf import Shelf


def shelf(project: Project, taken: int) -> Shelf:
    """What the declared memory, or else the free memory, leaves is for hidden states.

    taken: what the pass needs besides, in bytes (`rounding_memory`, `walking_memory`).
    """
    from builder.engine.rounding.shelf import Shelf

    @contextmanager
    def new_file() -> Iterator[Path]:
        with tmp.new_file(project.store) as staged:
            yield staged.path

    return Shelf(new_file, max(0, memory_for(project) - taken))
