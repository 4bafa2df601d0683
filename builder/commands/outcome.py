"""The JSON document of a run: what was built, measured, found and released, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from builder.commands.base import print_json
from builder.errors import BuildError
from builder.evaluate.records import evaluation
from builder.evaluate.run import measured
from builder.evaluate.threshold import answer, known_threshold
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.status import status_of
from builder.release.production import PRODUCTION
from builder.spec.place import DECLARATION
from builder.store import views


def print_outcome(tasks: Sequence[str], failed: Sequence[dict[str, str]]) -> None:
    """Prints the document of a run of these tasks. The answers are read from the store."""
    project = Project.load(Path(DECLARATION))
    of = {kind: [t.partition(":")[2] for t in tasks if t.startswith(f"{kind}:")] for kind in _KINDS}
    print_json(
        "run",
        targets=[found for name in of["model"] if (found := _target(project, name))],
        evaluations=[found for name in of["eval"] if (found := _evaluation(project, name))],
        thresholds=[found for name in of["threshold"] if (found := _threshold(project, name))],
        published=_published(project, of["publish"], failed),
        production=views.current_name(project.store.models / PRODUCTION),
        failed=failed,
    )


_KINDS = ("model", "eval", "threshold", "publish")


def _published(
    project: Project, names: Sequence[str], failed: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    wrong = {each["task"] for each in failed}
    declared = project.spec.publications
    return [
        {"publication": name, "target": declared[name].target, "to": str(declared[name].to)}
        for name in names
        if name in declared and f"publish:{name}" not in wrong
    ]


def _target(project: Project, name: str) -> dict[str, Any] | None:
    with suppress(BuildError, KeyError):
        row = status_of(project, project.spec.target(name))
        path = project.store.models / name
        return {
            "target": name,
            "state": row.state,
            "path": str(path) if row.state == "built" else None,
            "size": row.size,
            "bits_per_weight": row.bits_per_weight,
        }
    return None


def _evaluation(project: Project, name: str) -> dict[str, Any] | None:
    with suppress(BuildError, KeyError):
        plan = project.plan.targets[name]
        if isinstance(plan, TargetPlan):
            return evaluation(plan.target, measured(project, plan))
    return None


def _threshold(project: Project, model: str) -> dict[str, Any] | None:
    with suppress(BuildError, KeyError):
        found = known_threshold(project, model)
        return {
            "model": model,
            "found": found.search.found,
            "answer": answer(found.search),
            "targets": [
                {
                    "target": name,
                    "verdict": found.verdict(name),
                    "misses": list(map(str, found.misses.get(name, ()))),
                    "doubts": list(map(str, found.open.get(name, ()))),
                }
                for name in found.search.order
            ],
            "unmeasured": found.search.unasked,
            "exceptions": found.search.exceptions,
        }
    return None
