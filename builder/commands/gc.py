"""`doit gc`: shows what no declared target needs, and then deletes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.console.display import showing
from builder.console.words import count, here, size_of_text, size_text
from builder.errors import BuildError
from builder.project.project import Project
from builder.project.roots import fingerprint, gc_plan, register
from builder.store import checkouts
from builder.store.care.gc import apply_gc
from builder.store.care.policy import GcPlan, Policy


class BadOption(BuildError):
    """{option}: {what}."""

    exit_code = 3


class Gc(ProjectCommand):
    name = "gc"
    doc_purpose = "delete what no declared target, pin, running build or other checkout needs"
    doc_usage = ""
    interrupted = "What was deleted was not needed; the same command deletes the rest."
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
            "metavar": "DAYS",
            "long": "keep-days",
            "type": str,
            "default": "",
            "help": "keep what was used in the last N days",
        },
        {
            "name": "max_size",
            "metavar": "SIZE",
            "long": "max-size",
            "type": str,
            "default": "",
            "help": "delete until the store fits this size (200GB), least recently used first",
        },
        {
            "name": "grace",
            "metavar": "SECONDS",
            "long": "grace",
            "type": str,
            "default": "3600",
            "help": "keep everything that is younger than this many seconds (3600)",
        },
        {
            "name": "forget",
            "metavar": "FOLDER",
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
        {
            "name": "results",
            "long": "results",
            "type": bool,
            "default": False,
            "help": "delete also what was measured of targets and suites that nothing declares",
        },
        {"name": "yes", "short": "y", "long": "yes", "type": bool, "default": False, "help": "do not ask"},
        OPT_JSON,
    )

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        if options["forget"]:
            forget(project, here() / options["forget"], really=not options["dry_run"])
        allowed = policy(options)
        with showing() as emit:
            fingerprint(project, emit)
        plan = gc_plan(project, allowed)
        if not options["json"]:
            show(plan)
        freed = None
        if not options["dry_run"] and not plan.is_empty:
            if not (options["yes"] or options["json"] or agreed("Delete this?")):
                print("Nothing was deleted.")
                return 0
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
                fresh_bytes=plan.fresh_bytes,
                results=len(plan.results),
                spare_results=plan.spare_results,
            )
        elif freed:
            print(f"freed {size_text(freed.bytes)} in {freed.blobs} blobs")
        return int(plan.over > 0)


def forget(project: Project, folder: Path, *, really: bool) -> None:
    """Keep nothing any more for another checkout. Raises BadOption for one that does not use this store."""
    known = {checkout.folder for checkout in checkouts.registered(project.store)}
    if folder.resolve() not in known:
        raise BadOption(option="--forget", what=f"no checkout {folder} uses this store")
    if really:
        checkouts.forget(project.store, folder)


def agreed(question: str) -> bool:
    """What a person at a terminal answers. A script agrees: it has `--dry-run` for looking."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def policy(options: Mapping[str, Any]) -> Policy:
    """The policy that the options of the command line describe. Raises BadOption."""
    return Policy(
        keep_days=number_of("--keep-days", options["keep_days"]),
        max_bytes=_size("--max-size", options["max_size"]),
        grace_s=number_of("--grace", options["grace"]) or 0.0,
        allow_no_roots=options["no_roots"],
        results=options["results"],
    )


def number_of(option: str, text: str) -> float | None:
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
        kept = size_text(plan.kept_bytes)
        print(f"Nothing to delete: {kept} in the store are all needed{_or_kept(plan)}{_or_new(plan)}.")
    else:
        print(
            f"{len(plan.blobs)} blobs, {len(plan.records)} records, {len(plan.temporaries)} left-overs: "
            f"{size_text(plan.bytes)} to free, {size_text(plan.kept_bytes)} stay"
        )
    if plan.fresh_bytes and not plan.is_empty:
        print(f"Of what stays,{_or_new(plan).removeprefix(' or new:')}.")
    if plan.spare_results and not plan.results:
        spare = count(plan.spare_results, "result")
        print(f"{spare} of nothing declared stay: measuring is dear. `doit gc --results` deletes them.")
    if plan.over:
        print(f"The declared targets alone are {size_text(plan.over)} larger than --max-size.")


def _or_kept(plan: GcPlan) -> str:
    """What the policy keeps beyond what is needed."""
    if plan.policy.max_bytes is not None and not plan.over:
        return f" or fit into {size_text(plan.policy.max_bytes)}"
    days = plan.policy.keep_days
    return f" or were used in the last {days:g} days" if days else ""


def _or_new(plan: GcPlan) -> str:
    """How much nobody needs and is only kept because it is new, and until when."""
    if not plan.fresh_bytes:
        return ""
    until = datetime.fromtimestamp(plan.fresh_until_ns / 1e9)
    shown = until.strftime("%H:%M" if until.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
    return f" or new: nothing needs {size_text(plan.fresh_bytes)}, which stay until {shown}"
