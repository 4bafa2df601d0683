"""`doit plan [TARGET...]`: says what a run would do and cost. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.build.outlook import available
from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import count, duration, listed, size_text
from builder.plan.remarks import remarked
from builder.project.forecast import Forecast, forecast
from builder.project.project import Project
from builder.project.targets import find_targets

HEADINGS = ("model", "make", "reuse", "read", "write", "memory", "time")


class Plan(ProjectCommand):
    name = "plan"
    doc_purpose = "show what a run would do: blocks, bytes, memory, time, space"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: nothing is to be done. 1: something is."
    cmd_options = (OPT_JSON,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        chosen = find_targets(project, names)
        everything = [target.name for target in project.spec.targets if not target.variant.intermediate]
        with showing() as emit:
            found = available(project, chosen or everything, emit)
        made = forecast(project, chosen, found)
        to_build = {name for one in made.passes for name in one.targets}
        plans = project.plan.resolved() if to_build else ()
        said = (remark for plan in plans if plan.name in to_build for remark in plan.remarks)
        remarks = [*dict.fromkeys(said)]
        if options["json"]:
            print_json(
                "plan",
                fetch=made.fetch,
                passes=made.passes,
                learned=made.learned,
                relink=made.relink,
                prepare=[{"target": target, "reason": reason} for target, reason in made.prepare],
                refused=[{"target": target, "reason": reason} for target, reason in made.refused],
                built=made.built,
                remarks=remarks,
                imports=made.imports,
                space={
                    "before": made.before,
                    "after": made.after,
                    "copies": made.copies,
                    "free": made.free,
                    "fits": made.fits,
                },
            )
        else:
            show(made)
            for line in remarked([plan for plan in plans if plan.name in to_build]):
                print(line)
        return int(not made.is_empty)


def _by_reason(found: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> the targets that have it: a base says it once, not once for each target."""
    groups: dict[str, list[str]] = {}
    for target, reason in found:
        groups.setdefault(reason, []).append(target)
    return groups


def show(made: Forecast) -> None:
    """Prints a forecast."""
    if made.is_empty:
        print(f"Nothing to do: {count(len(made.built), 'target')} built.")
        return
    for there in made.fetch:
        what = "all of it" if there.whole else count(there.blocks, "block")
        print(f"{there.target}: pull {what} from {there.remote}, {size_text(there.nbytes)} to fetch")
    for one in made.passes:
        print(f"{one.model}: build {', '.join(one.targets)} in one pass")
    if made.passes:
        rows = [
            [
                one.model,
                count(one.make, "block"),
                str(one.reuse),
                size_text(one.read),
                size_text(one.write),
                f"< {size_text(one.memory)}",
                duration(one.seconds),
            ]
            for one in made.passes
        ]
        print_table(HEADINGS, rows, left=("model",), unimportant=("reuse", "read", "time"))
    for step in made.learned:
        print(
            f"then {step.method} makes {step.target} of {listed(step.sources, 'and')}"
            f" ({size_text(step.read)}); its memory, time and size are not known before"
        )
    if made.relink:
        print(f"make the view again, no bytes written: {', '.join(made.relink)}")
    guessed = [one.model for one in made.passes if one.estimated]
    for reason, targets in _by_reason(made.prepare).items():
        more = "" if guessed else ", then more can be said"
        print(f"{reason}: a run does that first{more} ({listed(targets, 'and')})")
    for one in made.passes:
        if one.once:
            print(f"{one.model}: its base is read once. The pass fingerprints what it reads.")
    if guessed:
        writes = f" An import writes {size_text(made.imports)}." if made.imports else ""
        print(f"The numbers of {', '.join(guessed)} are estimates from the headers of the files.{writes}")
    for reason, targets in _by_reason(made.refused).items():
        print(f"{', '.join(targets)} cannot be built: {reason}")
    if made.built:
        print(f"built: {', '.join(made.built)}")
    more = ", more by what is not known" if made.learned else ""
    print(
        f"store: {size_text(made.before)} now, {size_text(made.after)} after{more}; "
        f"{size_text(made.free)} free on its disk"
    )
    if made.copies:
        print(f"This disk can neither clone nor link: the views are copies, {size_text(made.copies)} more.")
    if pruned := sorted({step.source for step in made.learned if step.prunes}):
        print(f"deleted again as soon as nothing needs it: {', '.join(pruned)}")
    if not made.fits:
        print("This does not fit on the disk. `doit gc --dry-run` shows what can be freed.")
