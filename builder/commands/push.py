"""`builder push [TARGET...]`: sends built targets, and what was measured of them, to a remote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.remotes import OPT_DRY_RUN, OPT_REMOTE, chosen_remotes
from builder.console.display import showing
from builder.console.tables import print_table
from builder.console.words import count, size_text
from builder.project.project import Project
from builder.project.targets import find_targets

KEPT = "What was pushed is kept; the same command goes on from there."


class Push(ProjectCommand):
    name = "push"
    doc_purpose = "send built targets, and what was measured of them, to a remote"
    doc_usage = "[TARGET...]"
    doc_description = "Without names: every target that is built. Exit code 1: a named target is not built."
    interrupted = KEPT
    cmd_options = (
        OPT_REMOTE,
        OPT_DRY_RUN,
        {
            "name": "read_back",
            "long": "read-back",
            "type": bool,
            "default": False,
            "help": "download and hash every blob that was sent before its record becomes visible",
        },
        OPT_JSON,
    )

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.build.sharing import look_at, send
        from builder.plan.types import TargetPlan
        from builder.project.remotes import bundle_of
        from builder.remote.push import Bundle, PushPlan, plan_push
        from builder.remote.signing import own_signer

        wanted = find_targets(project, names) or [target.name for target in project.spec.targets]
        plans = [plan for n in wanted if isinstance(plan := project.plan.targets[n], TargetPlan)]
        found = {plan.name: bundle for plan in plans if (bundle := bundle_of(project, plan))}
        absent = [name for name in wanted if name not in found] if names else []
        bundles: list[Bundle] = list(found.values())
        made: dict[str, PushPlan] = {}
        for remote in chosen_remotes(project, options["remote"]):
            if options["dry_run"]:
                look = look_at(project, remote)
                made[remote.name] = plan_push(look.contents, bundles, own_signer())
            else:
                with showing() as emit:
                    made[remote.name] = send(project, remote, bundles, emit, read_back=options["read_back"])
        if options["json"]:
            print_json(
                "push",
                dry_run=options["dry_run"],
                remotes=[_said(name, plan, bundles) for name, plan in made.items()],
                not_built=absent,
            )
        else:
            for name, sent in made.items():
                show(name, sent, bundles, dry_run=options["dry_run"])
            for name in absent:
                print(f"{name} is not built: `builder build {name}` builds it")
        return int(bool(absent))


def _said(name: str, plan: Any, bundles: Sequence[Any]) -> dict[str, object]:
    return {
        "remote": name,
        "targets": [bundle.name for bundle in plan.bundles],
        "bytes": plan.nbytes,
        "blobs": len(plan.blobs),
        "texts": len(plan.create) + len(plan.exchange),
        "signatures": len(plan.sign),
        "kept": plan.kept,
    }


def show(name: str, plan: Any, bundles: Sequence[Any], *, dry_run: bool) -> None:
    """Prints what was sent, or would be sent, to one remote."""
    if not bundles:
        print("No target is built: there is nothing to push.")
        return
    sent = set(plan.blobs)
    new = {*plan.create, *(text for text, _ in plan.exchange)}
    rows = []
    for bundle in plan.bundles:
        mine = [blob for blob in bundle.blobs if blob in sent]
        rows.append(
            [
                bundle.name,
                size_text(sum(blob.size for blob in mine)),
                f"{len(mine)} of {len(bundle.blobs)}",
                str(sum(text.kind == "record" for text in bundle.texts if text in new)),
                str(sum(text.kind == "result" for text in bundle.texts if text in new)),
            ]
        )
    if plan.is_empty:
        print(f"{name} has everything: {count(len(plan.bundles), 'target')}, nothing to push")
    else:
        verb = "to push" if dry_run else "pushed"
        print_table(("target", verb, "blobs", "records", "results"), rows, left=("target",))
        print(f"{name}: {size_text(plan.nbytes)} {verb} in {count(len(plan.blobs), 'blob')}")
    for line in plan.kept:
        print(line)
