"""`builder lock`: writes artifacts.lock. `builder lock --check`: says what differs from artifacts.lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.guard import writing
from builder.console.display import showing
from builder.console.words import count
from builder.plan.changes import shortened
from builder.project.project import Project
from builder.store.disk.durable import replace_text

if TYPE_CHECKING:
    from builder.build.lockfile import Difference

OPT_CHECK: Mapping[str, Any] = {
    "name": "check",
    "long": "check",
    "type": bool,
    "default": False,
    "help": "write nothing and say what differs. Exit code 1 if something differs",
}


class Lock(ProjectCommand):
    name = "lock"
    doc_purpose = "pin the digests of bases, adapters and outputs in artifacts.lock"
    doc_usage = ""
    cmd_options = (OPT_CHECK, OPT_JSON)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.build import lockfile as lock

        path = project.spec.file.with_name(lock.NAME)
        former = lock.read(path) if options["check"] else None
        with showing() as emit:
            here = lock.lock_of(project, emit)
        if former is None:
            with suppress(lock.LockInvalid):  # the lock file does not exist yet, or is not valid
                here = lock.with_outputs(here, lock.read(path))
            with writing(path):
                replace_text(path, lock.to_text(here))
            if options["json"]:
                print_json("lock", file=str(path), written=True, same=True, differences=())
                return 0
            print(f"{path.name}: {', '.join(count(len(here[kind]), kind) for kind in here)}")
            return 0
        found = lock.differences(former, here)
        if options["json"]:
            print_json("lock", file=str(path), written=False, same=not found, differences=found)
            return int(bool(found))
        for one in found:
            print(f"{one.what}: {_said(one, path.name)}")
        if not found:
            print(f"everything is as {path.name} says")
        return int(bool(found))


def _said(one: Difference, lock: str) -> str:
    if one.locked is None:
        return f"not in {lock}"
    if one.here is None:
        return "not declared any more"
    return f"{shortened(one.locked)} -> {shortened(one.here)}"
