"""`publish:NAME --dry-run`: what a publication would do. Builds, measures and sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.console.words import count, size_text
from builder.tasks.publishing import TASK

if TYPE_CHECKING:
    from builder.publish.bundle import Plan


def dry_run(file: Path, names: Sequence[str], *, as_json: bool) -> int:
    """Prints what these publications would do. Builds, measures and sends nothing. Raises BuildError."""
    from builder.console.display import showing
    from builder.project.project import Project
    from builder.publish.publication import find, look

    project = Project.load(file)
    plans = []
    with showing() as emit:
        for name in names:
            plans.append((name, look(project, find(project, name.removeprefix(TASK)), emit)))
    if as_json:
        _print_json(plans)
        return 0
    for _, made in plans:
        _show(made)
    return 0


def _show(made: Plan) -> None:
    from builder.console.tables import print_table

    bundle = made.bundle
    print(f"{bundle.target} -> {made.to}{'' if made.exists else ' (does not exist yet)'}")
    for note in bundle.notes:
        print(f"note: {note}")
    if made.is_empty:
        print(f"Nothing to do: {count(len(made.changes), 'file')}, all the same there.")
        return
    rows = [[change.name, size_text(change.size), change.action] for change in made.changes]
    print_table(("file", "size", "what"), rows, left=("file", "what"))
    print(f"to send: {count(len(made.named('send')), 'file')}, {size_text(made.sends)}")
    print(f"\n{bundle.card}", end="")


def _print_json(plans: Sequence[tuple[str, Plan]]) -> None:
    import json

    documents: list[dict[str, Any]] = [
        {
            "publication": name.removeprefix(TASK),
            "target": made.bundle.target,
            "to": made.to,
            "exists": made.exists,
            "is_empty": made.is_empty,
            "bytes": made.sends,
            "files": [{"name": each.name, "size": each.size, "action": each.action} for each in made.changes],
            "notes": [*made.bundle.notes],
            "card": made.bundle.card,
        }
        for name, made in plans
    ]
    print(json.dumps({"schema": "modelkiln/publish/1", "publications": documents}, indent=2))
