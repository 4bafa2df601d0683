"""`builder init`: a commented artifacts.toml that proposes what lies nearby, and a dodo.py. Asks nothing."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doit.cmd_base import Command

from builder.commands import COMMANDS
from builder.commands.guard import guarded
from builder.errors import BuildError

DODO = 'from builder.tasks import load\nDOIT_CONFIG, task_artifacts = load("artifacts.toml")\n'


class AlreadyThere(BuildError):
    """{path} exists already."""

    exit_code = 3
    hint = "Edit it, or move it away and run `builder init` again."


class Init(Command):  # type: ignore[misc]
    name = "init"
    doc_purpose = "propose an artifacts.toml from the adapters and models found nearby"
    doc_usage = ""

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        return guarded(lambda: init(Path.cwd()))


def init(folder: Path) -> int:
    """Writes artifacts.toml, and dodo.py and doit's configuration where there is none."""
    from builder.nearby import look, propose
    from builder.parse import parse_spec

    file = folder / "artifacts.toml"
    if file.exists():
        raise AlreadyThere(path=file.name)
    found = look(folder)
    file.write_text(propose(found, schema_reference(folder)), encoding="utf-8")
    things = f"{counted(len(found.bases), 'base')}, {counted(len(found.adapters), 'adapter')}"
    print(f"artifacts.toml: {things} found; look for EDIT, then `builder plan` says what a build costs")
    if not (folder / "dodo.py").exists():
        (folder / "dodo.py").write_text(DODO, encoding="utf-8")
        print("dodo.py: `doit` builds")
    if not _configures_doit(folder):
        lines = [f"{name} = {place}" for name, place in COMMANDS.items()]
        (folder / "doit.cfg").write_text("\n".join(["[COMMAND]", *lines, ""]), encoding="utf-8")
        print("doit.cfg: `doit status`, `doit why`, `doit plan`")
    parse_spec(file)
    return 0


def schema_reference(folder: Path) -> str:
    """Where an editor finds the schema: relative when the package is installed below the folder."""
    schema = Path(__file__).resolve().parent.parent / "artifacts.schema.json"
    if schema.is_relative_to(folder.resolve()):
        return "./" + os.path.relpath(schema, folder.resolve())
    return schema.as_uri()


def _configures_doit(folder: Path) -> bool:
    if (folder / "doit.cfg").exists():
        return True
    try:
        data = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(data.get("tool", {}).get("doit", {}).get("plugins", {}).get("command"))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
