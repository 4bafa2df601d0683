"""`builder`: every command, in the project of this folder or of a folder above.

builder build [TARGET...]            build what is not up to date
builder status | why | plan          what there is, why it would be built, what that costs
builder eval [TARGET...]             measure targets by the suites of their models
builder threshold:MODEL              find the smallest target that meets the requirements
builder release:production           move models/production to its declared target
builder list, info TASK              the tasks, and what one of them depends on
builder gc | verify                  delete what nobody needs; hash the store again
builder report [MODEL...]            tables, plots and provenance of what was built and measured
builder init                         propose an artifacts.toml for this folder
builder add-variant MODEL VARIANT    declare one more variant
builder lock [--check]               pin or check all inputs in artifacts.lock (`build --locked` checks too)
builder push | pull [TARGET...]      send built targets to a remote, or get them from there
builder remote init | check | gc     make a store in a remote, try its server, delete what nobody needs
builder trust [NAME KEY]             your public key, and whose signatures count
builder path TARGET                  the folder of a built target, or of base:NAME
builder attest TARGET                an in-toto statement about a built target
builder completion bash|zsh|fish     completion for `builder` and `doit`
builder worker ADDRESS               work for others, as one machine of a cluster (docs/machines.md)
builder --cluster ADDRESS COMMAND    build, eval and threshold:MODEL on the workers of a cluster
builder -d FOLDER COMMAND            the same in another folder
builder help COMMAND                 the options of a command
builder --version                    the version
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

from builder.commands import COMMANDS, STANDALONE
from builder.commands.guard import guarded
from builder.console.words import stand_in
from builder.spec.place import project_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["_complete"]:
        from builder.commands.complete import complete

        return complete(given[1:])
    stand_in(Path.cwd())
    if given[:1] in (["-d"], ["--dir"]) and len(given) > 1:
        try:
            os.chdir(given[1])
        except OSError as error:
            return _refused(f"{given[1]}: {error.strerror}")
        given = given[2:]
    if not given or given in (["-h"], ["--help"], ["help"]):
        print(dedent(__doc__ or "").strip())
        return 0
    if given in (["--version"], ["-V"]):
        from builder.project.toolchain import version_of

        print(f"modelkiln {version_of('modelkiln')}")
        return 0
    if given[0].partition("=")[0] == "--cluster":
        given = _behind(given)
    if given[0].startswith("-"):
        return _refused(
            f"{given[0]}: options stand after the command; only -d FOLDER and --cluster ADDRESS stand before"
        )
    if given != ["init"] and (folder := project_folder(Path.cwd())):
        os.chdir(folder)
    return guarded(lambda: _doit(given))


def _behind(given: list[str]) -> list[str]:
    """`--cluster ADDRESS COMMAND ...` means `COMMAND --cluster ADDRESS ...`."""
    option = 1 if "=" in given[0] else 2
    command, rest = given[option : option + 1] or ["build"], given[option + 1 :]
    if ":" in command[0]:  # a task
        return ["build", *given[:option], *command, *rest]
    return [*command, *given[:option], *rest]


def _refused(what: str) -> int:
    print(f"ERROR: {what}", file=sys.stderr)
    return 3


def _doit(given: list[str]) -> int:
    from doit.cmd_base import NamespaceTaskLoader
    from doit.doit_cmd import DoitMain

    from builder.commands.wiring import loads_artifacts

    class Main(DoitMain):  # type: ignore[misc]
        BIN_NAME = "builder"

    class Declared(NamespaceTaskLoader):  # type: ignore[misc]
        """Loads the tasks of artifacts.toml, for a project whose dodo.py does not load them or is missing."""

        def setup(self, opt_values: Mapping[str, Any]) -> None:
            from builder.tasks.graph import load

            config, tasks = load("artifacts.toml")
            self.namespace = {"DOIT_CONFIG": config, "task_artifacts": tasks}

    loader = None if loads_artifacts(Path("dodo.py")) else Declared()
    commands = Main(
        loader, extra_config={"COMMAND": {**COMMANDS, **STANDALONE}, "list": {"subtasks": "true"}}
    )
    known = commands.get_cmds()
    if given[0] not in known:
        from builder.commands.complete import buildable, declared
        from builder.console.words import suggestion

        tasks = buildable(declared())
        if given[0] not in tasks and ":" not in given[0]:  # `build` reports a wrong name with a colon
            return _refused(f'there is no command "{given[0]}"{suggestion(given[0], [*known, *tasks])}')
        given = ["build", *given]
    if {"-h", "--help"} & {*given[1:2]}:
        given = ["help", given[0]]
    return int(commands.run(given) or 0)


if __name__ == "__main__":
    sys.exit(main())
