"""`builder remote init | check | gc`: makes a store in a remote, tries its server, deletes what nobody
needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doit.exceptions import InvalidCommand

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.gc import agreed, number_of
from builder.commands.remotes import OPT_DRY_RUN, chosen_remotes
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import count, size_text
from builder.project.project import Project
from builder.spec.sharing import Remote as Declared

if TYPE_CHECKING:
    from builder.remote.gc import Policy, RemoteGcPlan
    from builder.remote.setup import Check

_DOES = ("init", "check", "gc")


class Remote(ProjectCommand):
    name = "remote"
    doc_purpose = "make a store in a remote (init), try its server (check), delete what nobody needs (gc)"
    doc_usage = "init|check|gc [NAME]"
    doc_description = "Exit code 0: everything that is needed works. 1: something does not."
    interrupted = "What was deleted stays deleted; the same command deletes the rest."
    cmd_options = (
        OPT_DRY_RUN,
        {
            "name": "grace",
            "metavar": "HOURS",
            "long": "grace",
            "type": str,
            "default": "24",
            "help": "gc keeps everything that is younger than so many hours (24)",
        },
        {
            "name": "keep_days",
            "metavar": "DAYS",
            "long": "keep-days",
            "type": str,
            "default": "",
            "help": "gc gives up targets not pushed for so many days, but for the newest of each name",
        },
        {"name": "yes", "short": "y", "long": "yes", "type": bool, "default": False, "help": "do not ask"},
        OPT_JSON,
    )

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        if not names or names[0] not in _DOES or len(names) > 2:
            raise InvalidCommand("remote takes init, check or gc, and the NAME of a remote")
        remotes = chosen_remotes(project, names[1] if len(names) == 2 else "")
        if names[0] == "gc":
            return _collect(project, remotes, options)
        found = {remote.name: _done(names[0], remote) for remote in remotes}
        if options["json"]:
            print_json("remote", remotes=found)
        else:
            for remote in remotes:
                show(remote, found[remote.name], made=names[0] == "init")
        return int(any(check.ok is False for checks in found.values() for check in checks))


def _done(what: str, remote: Declared) -> tuple[Check, ...]:
    from builder.remote.connect import connect, open_remote
    from builder.remote.setup import init, probe

    return init(connect(remote)) if what == "init" else probe(open_remote(remote))


def show(remote: Declared, checks: Sequence[Check], *, made: bool) -> None:
    """Prints what was tried, and what does not work for it."""
    rows = [[check.what, "yes" if check.ok else "no", check.needed, check.said] for check in checks]
    print_table((remote.name, "works", "needed for", "says"), rows, left=(remote.name, "needed for", "says"))
    if made:
        print(f"There is a store at {remote.url}.")
    if any(check.what in ("create", "replace") and not check.ok for check in checks):
        print(
            "Without create and replace, pushing and pulling work all the same, but `remote gc` is refused."
        )
    if remote.url.startswith("s3://"):
        print("Parts of killed uploads stay hidden. Give the bucket a rule AbortIncompleteMultipartUpload.")


# -- gc -----------------------------------------------------------------------------------------------------


def _collect(project: Project, remotes: Sequence[Declared], options: Mapping[str, Any]) -> int:
    from builder.remote.connect import open_remote
    from builder.remote.gc import Policy, collect, plan_gc
    from builder.remote.inventory import survey

    days = number_of("--keep-days", options["keep_days"])
    hours = number_of("--grace", options["grace"]) or 0.0
    policy = Policy(3600 * hours, days, frozenset(project.keys.values()))
    said = []
    for remote in remotes:
        transport = open_remote(remote)
        plan = plan_gc(survey(transport), policy)
        deletes = not (options["dry_run"] or plan.is_empty)
        if not options["json"]:
            show_gc(remote, plan, policy)
        if deletes and not (options["yes"] or options["json"] or agreed("Delete this?")):
            print("Nothing was deleted.")
            continue
        if deletes:
            with showing() as emit:
                plan = collect(transport, policy, emit)
            if not options["json"]:
                print(f"{remote.name}: {size_text(plan.nbytes)} freed")
        said.append(_document(remote, plan, deleted=deletes))
    if options["json"]:
        print_json("remote-gc", dry_run=options["dry_run"], remotes=said)
    return 0


def show_gc(remote: Declared, plan: RemoteGcPlan, policy: Policy) -> None:
    """Prints what would be deleted, and what stays."""
    for root in plan.given_up:
        print(f"{root.target} of {root.project}, {root.key[:12]}: not pushed for {policy.keep_days:g} days")
    new = f", {size_text(plan.fresh)} of them because they are new" if plan.fresh else ""
    if plan.is_empty:
        print(f"{remote.name}: nothing to delete, {size_text(plan.kept_bytes)} stay{new}")
        return
    what = f"{count(len(plan.blobs), 'blob')}, {count(len(plan.texts), 'text')}"
    print(
        f"{remote.name}: {what}, {count(len(plan.leftovers), 'left-over')}: {size_text(plan.nbytes)} to free"
    )
    print(f"{remote.name}: {size_text(plan.kept_bytes)} stay{new}")


def _document(remote: Declared, plan: RemoteGcPlan, *, deleted: bool) -> dict[str, object]:
    return {
        "remote": remote.name,
        "given_up": [{"target": r.target, "project": r.project, "key": r.key} for r in plan.given_up],
        "texts": len(plan.texts),
        "blobs": len(plan.blobs),
        "leftovers": len(plan.leftovers) + len(plan.void),
        "bytes": plan.nbytes,
        "kept_bytes": plan.kept_bytes,
        "fresh_bytes": plan.fresh,
        "deleted": deleted,
    }
