"""`doit gc`: shows what no declared target needs, and then deletes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.console.display import showing
from builder.console.words import size_of_text, size_text
from builder.errors import BuildError
from builder.project.project import Project
from builder.project.roots import fingerprint, gc_plan, register
from builder.store import checkouts
from builder.store.care.gc import GcPlan, Policy, apply_gc


class BadOption(BuildError):
    """{option}: {what}."""

    exit_code = 3


class Gc(ProjectCommand):
    name = "gc"
    doc_purpose = "delete what no declared target, pin, running build or other checkout needs"
    doc_usage = ""
    doc_description = "What goes is shown before it goes. Works on a full disk."
    cmd_options = (
        {
            "name": "dry_run",
            "long": "dry-run",
            "type": bool,
            "default": False,
            "help": "show what would be deleted, delete nothing",
        },
        {
            "name": "keep_days",
            "long": "keep-days",
            "type": str,
            "default": "",
            "help": "keep what was used in the last N days",
        },
        {
            "name": "max_size",
            "long": "max-size",
            "type": str,
            "default": "",
            "help": "delete until the store fits this size (200GB), least recently used first",
        },
        {
            "name": "grace",
            "long": "grace",
            "type": str,
            "default": "3600",
            "help": "keep everything that is younger than this many seconds (3600)",
        },
        {
            "name": "forget",
            "long": "forget",
            "type": str,
            "default": "",
            "help": "keep nothing any more for the checkout in this folder, which shared the store",
        },
        {
            "name": "no_roots",
            "long": "delete-everything-undeclared",
            "type": bool,
            "default": False,
            "help": "continue if artifacts.toml declares no target. This deletes everything in the store",
        },
        OPT_JSON,
    )

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        if options["forget"] and not checkouts.forget(project.store, Path(options["forget"])):
            raise BadOption(option="--forget", what=f"no checkout {options['forget']} uses this store")
        allowed = policy(options)
        with showing() as emit:
            fingerprint(project, emit)
        plan = gc_plan(project, allowed)
        if not options["json"]:
            show(plan)
        freed = None
        if not options["dry_run"] and not plan.is_empty:
            freed = apply_gc(project.store, plan)
            register(project)
        if options["json"]:
            print_json(
                "gc",
                dry_run=options["dry_run"],
                targets=[manifest.name for manifest in plan.manifests],
                views=[str(view) for view in plan.views],
                records=len(plan.records),
                blobs=len(plan.blobs),
                bytes=plan.bytes,
                kept_bytes=plan.kept_bytes,
                over=plan.over,
                freed_bytes=freed.bytes if freed else 0,
            )
        elif freed:
            print(f"freed {size_text(freed.bytes)} in {freed.blobs} blobs")
        return int(plan.over > 0)


def policy(options: Mapping[str, Any]) -> Policy:
    """The policy that the options of the command line describe. Raises BadOption."""
    return Policy(
        keep_days=_number("--keep-days", options["keep_days"]),
        max_bytes=_size("--max-size", options["max_size"]),
        grace_s=_number("--grace", options["grace"]) or 0.0,
        allow_no_roots=options["no_roots"],
    )


def _number(option: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise BadOption(option=option, what=f'"{text}" is not a number of at least 0')
    return value


def _size(option: str, text: str) -> int | None:
    if not text:
        return None
    size = size_of_text(text)
    if size is None:
        raise BadOption(option=option, what=f'"{text}" is not a size such as 200GB or 500MB')
    return size


def show(plan: GcPlan) -> None:
    """Prints what will be deleted and what stays."""
    for manifest in plan.manifests:
        print(f"{manifest.kind} {manifest.name}, built {manifest.created}: {size_text(manifest.size)}")
    for view in plan.views:
        print(f"view {view.name}")
    if plan.is_empty:
        print(f"Nothing to delete: {size_text(plan.kept_bytes)} in the store are all needed or new.")
    else:
        print(
            f"{len(plan.blobs)} blobs, {len(plan.records)} records, {len(plan.temporaries)} left-overs: "
            f"{size_text(plan.bytes)} to free, {size_text(plan.kept_bytes)} stay"
        )
    if plan.over:
        print(f"The declared targets alone are {size_text(plan.over)} larger than --max-size.")
