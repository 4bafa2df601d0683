"""The remembered keys: they hold for the same inputs and the same code, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import builder
from builder.project import memo
from tests.test_layers import arrows, modules


def test_every_module_that_planning_reaches_is_a_part_of_what_is_remembered() -> None:
    """A module that could change a key and is not hashed would leave old keys in force after an upgrade."""
    package = Path(builder.__file__).parent
    hashed = {file for pattern in memo.CODE for file in package.glob(pattern)}
    graph, known = arrows(), modules()
    todo, reached = ["plan.planning", "project.project"], set[str]()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph[name]
    shown = {"console.events", "console.display", "console.lines", "console.live"}  # they only show
    assert {"keys", "spec.parse", "weights.structure", "sources.catalog", "plan.quantization"} <= reached
    assert [name for name in sorted(reached - shown) if known[name] not in hashed] == []
