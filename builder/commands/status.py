"""`doit status`: every target, what there is of it, and why it is not up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.commands import render
from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.project import Project
from builder.status import Status as Row
from builder.status import find_targets, survey

HEADINGS = ("target", "state", "size", "bits/w", "blocks", "reused", "built", "survival", "score", "why")


class Status(ProjectCommand):
    name = "status"
    doc_purpose = "show every target: state, size, when it was built, why it is not up to date"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: everything that `doit` builds is built. 1: something is to be done."
    cmd_options = (OPT_JSON,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        wanted = find_targets(project, names)
        rows = [row for row in survey(project) if not names or row.target in wanted]
        if options["json"]:
            print_json("status", targets=rows)
        else:
            show(rows)
        return int(any(row.due or (names and row.state != "built") for row in rows))


def show(rows: Sequence[Row]) -> None:
    if not rows:
        print("artifacts.toml declares no target.")
        return
    render.table(HEADINGS, [_cells(row) for row in rows], left=("target", "state", "built", "why"))


def _cells(row: Row) -> list[str]:
    return [
        row.target,
        row.state,
        render.size(row.size),
        f"{row.bits_per_weight:.3f}" if row.bits_per_weight is not None else "-",
        str(row.blocks) if row.blocks is not None else "-",
        str(row.reused) if row.reused is not None else "-",
        render.ago(row.built),
        f"{row.survival:.1f} dB" if row.survival is not None else "-",
        f"{100 * row.score:.1f} %" if row.score is not None else "-",
        row.why,
    ]
