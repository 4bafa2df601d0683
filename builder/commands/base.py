"""What all commands share: how they find the project, and the JSON document that they can print."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from getopt import GetoptError, gnu_getopt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from doit.cmd_base import Command
from doit.cmdparse import CmdParseError
from doit.exceptions import InvalidCommand

from builder.commands.guard import guarded
from builder.commands.usage import OneScreen
from builder.console.interrupt import NOTHING, when_interrupted
from builder.spec.place import DECLARATION

if TYPE_CHECKING:
    from builder.project.project import Project

OPT_JSON: Mapping[str, Any] = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print one JSON document (docs/json.md describes it)",
}


class AnyOrder:
    """Lets options of a doit command also stand after names (`doit status phase8_5bit --json`)."""

    def parse_execute(self, in_args: Sequence[str]) -> int:
        options_end = in_args.index("--") if "--" in in_args else len(in_args)
        if {"-h", "--help"} & {*in_args[:options_end]}:
            print(self.help())  # type: ignore[attr-defined]
            return 0
        parser: Any = self.cmdparser  # type: ignore[attr-defined]
        try:
            options, names = gnu_getopt(list(in_args), parser.get_short(), parser.get_long())
        except GetoptError as error:
            raise CmdParseError(f"{error} (`help {self.name}` shows the options)") from None  # type: ignore[attr-defined]
        ordered = [part for option, value in options for part in ((option, value) if value else (option,))]
        dashes = ["--"] if any(name.startswith("-") for name in names) else []
        return int(super().parse_execute([*ordered, *dashes, *names]) or 0)  # type: ignore[misc]


class ProjectCommand(AnyOrder, OneScreen, Command):  # type: ignore[misc]
    """A command for the project in the current folder. Its `run` returns the exit code.

    `interrupted` says what Ctrl-C leaves behind.
    """

    cmd_options: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    interrupted: ClassVar[str] = NOTHING

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        raise NotImplementedError

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        if not self.doc_usage:
            refuse_names(self, pos_args)

        when_interrupted(self.interrupted)

        def run() -> int:
            from builder.project.project import Project

            return self.run(Project.load(declaration(opt_values)), opt_values, pos_args)

        return guarded(run)


def refuse_names(command: Command, names: Sequence[str]) -> None:
    """Raises InvalidCommand for names given to a command that takes none. Ignoring them would mislead."""
    if names:
        what = f'{command.name} takes options only, not "{names[0]}"'
        raise InvalidCommand(f"{what} (`help {command.name}` shows them)")


def declaration(options: Mapping[str, Any]) -> Path:
    """The artifacts.toml that `doit -d FOLDER` or `doit -f FOLDER/dodo.py` means."""
    folder = options.get("cwdPath") or os.path.dirname(options.get("dodoFile") or "")  # noqa: PTH120
    return Path(folder) / DECLARATION


def print_json(kind: str, **values: object) -> None:
    """Prints one JSON document: first its kind and the version of its schema, then the values."""
    print(json.dumps({"schema": f"modelkiln/{kind}/1", **values}, indent=2, default=_plain))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
