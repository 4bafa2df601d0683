"""`doit status`: shows the state of every target, and why a target is not up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.build.outlook import SharedStatus, with_remotes
from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import ago, count, from_here, size_text
from builder.evaluate.standing import scored_survey
from builder.project.project import Project
from builder.project.targets import find_targets
from builder.store import releases, views

HEADINGS = (
    *("target", "state", "size", "bits/w", "blocks", "reused", "built", "survival", "score"),
    *("result", "why"),
)
TEXT = ("target", "state", "built", "result", "why")
UNIMPORTANT = ("reused", "blocks", "bits/w", "built", "survival", "score")


class Status(ProjectCommand):
    name = "status"
    doc_purpose = "show every target: state, size, when it was built, why it is not up to date"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: everything that `doit` builds is built. 1: something is to be done."
    cmd_options = (OPT_JSON,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        wanted = find_targets(project, names)
        found = [row for row in scored_survey(project) if not names or row.target in wanted]
        with showing() as emit:
            rows = with_remotes(project, found, emit)
        shown = {name: _target_of(project, name) for name in releases.released(project.store)}
        spare = undeclared(project)
        if options["json"]:
            print_json(
                "status", targets=rows, released=shown, undeclared=spare, models=str(project.store.models)
            )
        else:
            show(rows)
            for name, target in shown.items():
                print(f"{name} is {target}")
            if project.store.checkout:
                print(f"the store is shared: this checkout's models are in {from_here(project.store.models)}")
            if spare:
                print(f"stored, but not declared any more: {', '.join(spare)} (`doit gc` deletes them)")
        return int(any(row.due or (names and row.state != "built") for row in rows))


def undeclared(project: Project) -> tuple[str, ...]:
    """The targets that lie in the store under names that artifacts.toml does not declare."""
    models = project.store.models
    known = {target.name for target in project.spec.targets} | releases.NAMES
    found = sorted(models.iterdir()) if models.is_dir() else []
    return tuple(folder.name for folder in found if folder.name not in known and views.is_view(folder))


def _target_of(project: Project, release: str) -> str:
    return str(views.current_name(project.store.models / release))


def show(rows: Sequence[SharedStatus]) -> None:
    """Prints the table of targets."""
    if not rows:
        print("artifacts.toml declares no target.")
        return
    print_table(HEADINGS, [_cells(row) for row in rows], left=TEXT, unimportant=UNIMPORTANT)


def _cells(row: SharedStatus) -> list[str]:
    return [
        row.target,
        row.state,
        size_text(row.size),
        f"{row.bits_per_weight:.3f}" if row.bits_per_weight is not None else "-",
        str(row.blocks) if row.blocks is not None else "-",
        str(row.reused) if row.reused is not None else "-",
        ago(row.built),
        f"{row.survival:.1f} dB" if row.survival is not None else "-",
        _score(row),
        row.verdict,
        _why(row),
    ]


def _why(row: SharedStatus) -> str:
    """Why a target is not up to date, and where a run gets it from."""
    why = row.why or "; ".join(miss.partition(":")[0] for miss in row.misses)
    if not row.remote:
        return why
    part = "" if row.fetched is None else f"{count(row.fetched, 'block')} "
    return f"{why}; {part}in {row.remote}, {size_text(row.fetch)} to fetch"


def _score(row: SharedStatus) -> str:
    """A score from 0 to 1 in percent, other scores as plain numbers."""
    if row.score is None:
        return "-"
    return f"{100 * row.score:.1f} %" if 0 <= row.score <= 1 else f"{row.score:.3g}"
