"""`builder build [TARGET...]`: runs `doit`, with targets named as in status, and options in any place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.commands.base import AnyOrder
from builder.commands.guard import guarded
from builder.commands.run import Run


class Build(AnyOrder, Run):
    name = "build"
    doc_purpose = "build what is not up to date"
    doc_usage = "[TARGET...]"

    def execute(self, params: Any, args: Sequence[str]) -> int:
        return guarded(lambda: super(Build, self).execute(params, as_tasks(args)))


def as_tasks(names: Sequence[str]) -> list[str]:
    """The doit tasks for typed names. Targets and models may come without `model:`. Raises SpecError."""
    from builder.spec.parse import parse_spec

    if not names:
        return []
    spec = parse_spec(Path("artifacts.toml"))
    known = {target.name for target in spec.targets} | set(spec.models)
    return [f"model:{name}" if name in known else name for name in names]
