"""`builder path TARGET...`: the folder that a program loads, one a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from doit.exceptions import InvalidCommand

from builder.commands.base import ProjectCommand
from builder.console.words import from_here, suggestion
from builder.errors import BuildError
from builder.project.project import Project
from builder.project.targets import find_targets


class UnknownBase(BuildError):
    """there is no base "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows what artifacts.toml declares."


class Path(ProjectCommand):
    name = "path"
    doc_purpose = "print the folder of a built target, or of a base (base:NAME)"
    doc_usage = "TARGET..."
    doc_description = "A target that is not built is an error: what is printed can be loaded."

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        if not names:
            raise InvalidCommand("path takes a TARGET, for example: path phase8_5bit")
        for name in names:
            kind, _, base = name.partition(":")
            for folder in [_base(project, base)] if kind == "base" else _targets(project, name):
                print(folder)
        return 0


def _targets(project: Project, name: str) -> list[str]:
    from builder.project.opened import target_folder

    return [from_here(target_folder(project, found)) for found in find_targets(project, [name])]


def _base(project: Project, name: str) -> str:
    from builder.project.opened import base_folder

    if name not in project.spec.bases:
        raise UnknownBase(name=name, near=suggestion(name, list(project.spec.bases)))
    return from_here(base_folder(project, project.spec.bases[name]))
