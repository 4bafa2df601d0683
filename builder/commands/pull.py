"""`builder pull [TARGET...]`: gets targets from a remote, and what was measured of them, without building."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.remotes import OPT_DRY_RUN, OPT_REMOTE, chosen_remotes
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import size_text
from builder.project.project import Project
from builder.project.targets import find_targets

KEPT = "What was pulled is kept; the same command goes on from there."


class Pull(ProjectCommand):
    name = "pull"
    doc_purpose = "get targets, and what was measured of them, from a remote. Builds nothing"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: every target is here. 1: a target or some of its blocks are not there."
    interrupted = KEPT
    cmd_options = (OPT_REMOTE, OPT_DRY_RUN, OPT_JSON)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.build.pulling import pull_targets

        everything = [t.name for t in project.spec.targets if not t.variant.intermediate]
        wanted = find_targets(project, names) or everything
        remotes = chosen_remotes(project, options["remote"])
        with showing() as emit:
            rows = pull_targets(project, wanted, remotes, emit, dry_run=options["dry_run"])
        if options["json"]:
            print_json("pull", dry_run=options["dry_run"], targets=rows)
        else:
            verb = "to pull" if options["dry_run"] else "pulled"
            shown = [
                [row.target, size_text(row.nbytes), str(row.results), row.state, row.remote or "-"]
                for row in rows
            ]
            print_table(
                ("target", verb, "results", "then", "remote"), shown, left=("target", "then", "remote")
            )
        return int(any(row.state not in ("built", "can be pulled") for row in rows))
