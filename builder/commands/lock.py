"""`builder lock`: write artifacts.lock; `builder lock --check`: say what differs from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.commands.base import ProjectCommand
from builder.project import Project
from builder.why import shortened

OPT_CHECK: Mapping[str, Any] = {
    "name": "check",
    "long": "check",
    "type": bool,
    "default": False,
    "help": "write nothing: say what differs; exit code 1 if anything does",
}


class Lock(ProjectCommand):
    name = "lock"
    doc_purpose = "pin the digests of bases, adapters and outputs in artifacts.lock"
    doc_usage = ""
    cmd_options = (OPT_CHECK,)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder import lock

        path = project.spec.file.with_name(lock.NAME)
        here = lock.lock_of(project)
        if not options["check"]:
            path.write_text(lock.to_text(here), encoding="utf-8")
            print(f"{path.name}: {len(here['base'])} bases, {len(here['adapter'])} adapters, ", end="")
            print(f"{len(here['target'])} targets")
            return 0
        found = lock.differences(lock.read(path), here)
        for one in found:
            print(f"{one.what}: {shortened(one.locked)} -> {shortened(one.here)}")
        if not found:
            print(f"everything is as {path.name} says")
        return int(bool(found))
