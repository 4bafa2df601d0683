"""What the commands about remotes share: which remotes are meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.console.words import quoted, suggestion
from builder.errors import BuildError
from builder.project.project import Project
from builder.spec.sharing import Remote

OPT_REMOTE: Mapping[str, Any] = {
    "name": "remote",
    "long": "remote",
    "type": str,
    "default": "",
    "metavar": "NAME",
    "help": "only this remote. Default: all that artifacts.toml declares",
}
OPT_DRY_RUN: Mapping[str, Any] = {
    "name": "dry_run",
    "long": "dry-run",
    "type": bool,
    "default": False,
    "help": "show what would be done, do nothing",
}


class NoRemote(BuildError):
    """artifacts.toml declares no remote{which}"""

    exit_code = 3
    hint = 'Add a table, for example [remote.team] with url = "s3://models/kiln".'


def chosen_remotes(project: Project, name: str) -> tuple[Remote, ...]:
    """The remote of that name, or all of them. Raises NoRemote."""
    declared = project.spec.remotes
    if not declared:
        raise NoRemote(which=".")
    if not name:
        return tuple(declared.values())
    if name not in declared:
        raise NoRemote(which=f" {quoted(name)}{suggestion(name, [*declared])}", hint="")
    return (declared[name],)
