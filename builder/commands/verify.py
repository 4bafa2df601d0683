"""`doit verify`: rehashes the store, or part of it. `--repair` puts damaged files aside and rebuilds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.build.restore import restore
from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.gc import BadOption
from builder.console.display import showing
from builder.console.events import Hashing
from builder.console.interrupt import when_interrupted
from builder.console.words import size_text
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.targets import find_targets
from builder.store.care.repair import quarantine
from builder.store.care.verify import Report, verify


class Verify(ProjectCommand):
    name = "verify"
    doc_purpose = "rehash blobs and views, read every record; --repair rebuilds what is damaged"
    doc_usage = "[TARGET...]"
    doc_description = "Exit code 0: no damage (or all of it repaired). 1: damage was found."
    cmd_options = (
        {
            "name": "repair",
            "long": "repair",
            "type": bool,
            "default": False,
            "help": "put damaged files aside and build again exactly what they held",
        },
        {
            "name": "sample",
            "metavar": "SHARE",
            "long": "sample",
            "type": str,
            "default": "1",
            "help": "hash only this share of the files (0.1), chosen at random",
        },
        {
            "name": "seed",
            "long": "seed",
            "type": int,
            "default": 0,
            "help": "which sample (the same seed chooses the same files)",
        },
        OPT_JSON,
    )

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        with showing() as emit:

            def progress(done: int, total: int) -> None:
                emit(Hashing("store", done, total))

            report = verify(
                project.store,
                only=keys_of(project, names),
                fraction=_fraction(options["sample"]),
                seed=options["seed"],
                on_progress=progress,
            )
        if not options["json"]:
            show(report)
        rebuilt: tuple[str, ...] = ()
        if options["repair"] and report.findings:
            when_interrupted("The same command goes on from there.")
            quarantine(project.store, report.findings)
            with showing() as emit:
                rebuilt = restore(project, report.findings, emit)
            if not options["json"]:
                print(f"repaired; rebuilt: {', '.join(rebuilt) or 'nothing had to be'}")
        if options["json"]:
            print_json(
                "verify",
                files=report.files,
                bytes=report.bytes,
                findings=[
                    {"path": str(f.path), "kind": f.kind.name.lower(), "damage": f.kind.is_damage}
                    for f in report.findings
                ],
                repaired=options["repair"],
                rebuilt=rebuilt,
            )
        return int(not report.is_clean and not options["repair"])


def keys_of(project: Project, names: Sequence[str]) -> set[Key] | None:
    if not names:
        return None
    wanted = find_targets(project, names)
    plans = project.plan.targets
    return {plan.key for name in wanted if isinstance(plan := plans[name], TargetPlan)}


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise BadOption(option="--sample", what=f'"{text}" is not a part between 0 and 1')
    return value


def show(report: Report) -> None:
    """Prints each finding and a summary."""
    for finding in report.findings:
        print(f"{'DAMAGE' if finding.kind.is_damage else 'note'}  {finding.message}")
    damaged = sum(finding.kind.is_damage for finding in report.findings)
    print(f"{report.files} files, {size_text(report.bytes)} rehashed, {damaged} damaged")
    if damaged:
        print("`doit verify --repair` puts the damaged files aside and rebuilds what they held.")
