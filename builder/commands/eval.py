"""`builder eval [TARGET...]`: runs `doit eval:TARGET` for targets and models. `--again` measures anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.commands.base import AnyOrder
from builder.commands.guard import guarded
from builder.commands.run import OURS, Run
from builder.spec.place import DECLARATION
from builder.tasks.uptodate import SELECTED

OPT_AGAIN: Mapping[str, Any] = {
    "name": "again",
    "long": "again",
    "type": bool,
    "default": False,
    "help": "measure what was measured already too, and replace it",
}


class Eval(AnyOrder, Run):
    name = "eval"
    doc_purpose = "measure targets by the suites of their models"
    doc_usage = "[TARGET...]"
    cmd_options = (*Run.cmd_options, OPT_AGAIN)
    shown_options = (OPT_AGAIN, *OURS)

    def execute(self, params: Any, args: Sequence[str]) -> int:
        SELECTED.again = bool(params.pop("again"))
        return guarded(lambda: super(Eval, self).execute(params, as_evaluations(args)))


def as_evaluations(names: Sequence[str]) -> list[str]:
    """The tasks that measure what was typed: targets, or models for all their targets that `doit` builds.

    Raises SpecError.
    """
    from builder.spec.parse import parse_spec

    spec = parse_spec(Path(DECLARATION))
    tasks: list[str] = []
    for name in names:
        bare = name.removeprefix("eval:").removeprefix("model:")
        of_model = [t for t in spec.targets if t.model.name == bare and not t.variant.intermediate]
        tasks += [f"eval:{target.name}" for target in of_model] or [f"eval:{bare}"]
    return tasks or ["eval"]
