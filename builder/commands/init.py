"""`builder init`: writes a commented artifacts.toml that proposes what lies nearby, and a dodo.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from doit.cmd_base import Command

from builder.commands.base import AnyOrder, refuse_names
from builder.commands.guard import guarded, writing
from builder.commands.usage import OneScreen
from builder.errors import BuildError

SCHEMA = ".artifacts.schema.json"
OPT_SCHEMA: Mapping[str, Any] = {
    "name": "schema",
    "long": "schema",
    "type": bool,
    "default": False,
    "help": f"write {SCHEMA} anew (after an upgrade), and nothing else",
}


OPT_STORE: Mapping[str, Any] = {
    "name": "store",
    "long": "store",
    "type": bool,
    "default": False,
    "help": "make the store that artifacts.toml declares, also in the place of one that is gone",
}


class AlreadyThere(BuildError):
    """{path} exists already."""

    exit_code = 3
    hint = "Edit it, or move it away and run `builder init` again."


class Init(AnyOrder, OneScreen, Command):  # type: ignore[misc]
    name = "init"
    doc_purpose = "propose an artifacts.toml for this folder from the adapters and models found nearby"
    doc_usage = ""
    doc_description = "Files that exist stay as they are; what has to be added to them is printed."
    cmd_options: ClassVar[tuple[Mapping[str, Any], ...]] = (OPT_SCHEMA, OPT_STORE)

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        refuse_names(self, pos_args)
        if opt_values["store"]:
            return guarded(lambda: make_store(Path("artifacts.toml")))
        return guarded(lambda: write_schema(Path.cwd()) if opt_values["schema"] else init(Path.cwd()))


def init(folder: Path) -> int:
    """Writes artifacts.toml, and the files that `doit` needs if they are missing. Returns the exit code.

    Raises AlreadyThere.
    """
    from builder.commands.wiring import wire
    from builder.scaffold.edit import replace_checked
    from builder.scaffold.nearby import look
    from builder.scaffold.propose import propose

    file = folder / "artifacts.toml"
    if file.exists():
        raise AlreadyThere(path=file.name)
    found = look(folder)
    with writing(file):
        replace_checked(file, propose(found, f"./{SCHEMA}"))
    things = f"{counted(len(found.bases), 'base')}, {counted(len(found.adapters), 'adapter')}"
    print(f"artifacts.toml: {things} found; look for EDIT, then `builder plan` says what a build costs")
    write_schema(folder)
    with writing(folder):
        for line in wire(folder):
            print(line)
    return 0


def make_store(file: Path) -> int:
    """The store of a declaration, empty, if none is there. Raises SpecError, StoreError."""
    from builder.project.project import store_of
    from builder.spec.parse import parse_spec

    store = store_of(parse_spec(file), asked=True)
    print(f"{store.root} is the store")
    return 0


def write_schema(folder: Path) -> int:
    """Writes the schema beside the declaration. A path into an environment would be wrong on other machines.

    Returns the exit code.
    """
    from builder.spec.schema import schema_text

    with writing(folder / SCHEMA):
        (folder / SCHEMA).write_text(schema_text(), encoding="utf-8")
    print(f"{SCHEMA}: with it editors complete and check artifacts.toml")
    return 0


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 base, 2 bases."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
