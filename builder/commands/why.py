"""`doit why TARGET`: says which input changed, from what to what, and which blocks that rebuilds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.build.outlook import available, with_remote
from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.console.display import showing
from builder.console.words import size_text
from builder.plan.changes import Why as Answer
from builder.plan.changes import block_ranges, shortened
from builder.project.project import Project
from builder.project.targets import find_targets
from builder.project.why import why


class Why(ProjectCommand):
    name = "why"
    doc_purpose = "say why a target would be built: what changed, and which blocks a build makes"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: the targets are up to date. 1: something is to be done."
    cmd_options = (OPT_JSON,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        everything = [t.name for t in project.spec.targets if not t.variant.intermediate]
        wanted = find_targets(project, names) or everything
        with showing() as emit:
            found = available(project, wanted, emit)
        answers = [with_remote(why(project, name), found) for name in wanted]
        if options["json"]:
            print_json("why", targets=answers)
        else:
            for answer in answers:
                show(answer)
        return int(any(answer.state != "built" for answer in answers))


def show(answer: Answer) -> None:
    """Prints the answer for one target."""
    print(f"{answer.target} is {answer.state}: {answer.reason}.")
    for line in answer.bits:
        print(f"  {line}")
    for change in answer.changes:
        print(f"  {change.what}: {shortened(change.before)} -> {shortened(change.now)}")
    if answer.state == "built" or not answer.total:
        return
    if not answer.blocks:
        print("  rebuilds nothing: all its blocks are in the store, only the view is made")
        return
    print(
        f"  rebuilds {len(answer.blocks)} of {answer.total} blocks ({size_text(answer.nbytes)}), "
        f"reuses {answer.reused}"
    )
    print(f"  {', '.join(block_ranges(answer.blocks))}")
    if answer.remote:
        has = f"{answer.fetched} of the {len(answer.blocks)}"
        print(f"  {answer.remote} has {has}: a run pulls {size_text(answer.fetch)} instead of building them")
