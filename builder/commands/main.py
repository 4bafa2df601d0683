"""`builder`: every command, in a project with doit's configuration or without.

builder build [TARGET...]            build what is not up to date
builder status | why | plan          what there is, why it would be built, what that costs
builder build eval:TARGET            measure a target; `threshold:MODEL`, `release:production` likewise
builder report [MODEL...]            tables, plots and provenance of what was built and measured
builder init                         propose an artifacts.toml for this folder
builder add-variant MODEL VARIANT    declare one more variant
builder lock [--check]               pin or check all inputs in artifacts.lock (`build --locked` checks too)
builder attest TARGET                an in-toto statement about a built target
builder completion bash|zsh|fish     completion for `builder` and `doit`
builder help COMMAND                 options of a command; doit's own commands (list, info, ...) work too
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import builder
from builder.commands import COMMANDS, STANDALONE
from builder.commands.guard import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["_complete"]:
        from builder.commands.complete import complete

        return complete(given[1:])
    if not given or given in (["-h"], ["--help"], ["help"]):
        print(dedent(__doc__ or "").strip())
        return 0
    if given == ["--version"]:
        print(builder.__version__)
        return 0
    return guarded(lambda: _doit(given))


def _doit(given: list[str]) -> int:
    from doit.cmd_base import NamespaceTaskLoader
    from doit.doit_cmd import DoitMain

    class Main(DoitMain):  # type: ignore[misc]
        BIN_NAME = "builder"

    class Declared(NamespaceTaskLoader):  # type: ignore[misc]
        """For a project without dodo.py: the tasks of artifacts.toml."""

        def setup(self, opt_values: Mapping[str, Any]) -> None:
            from builder.tasks import load

            config, tasks = load("artifacts.toml")
            self.namespace = {"DOIT_CONFIG": config, "task_artifacts": tasks}

    loader = None if Path("dodo.py").is_file() else Declared()
    commands = Main(loader, extra_config={"COMMAND": {**COMMANDS, **STANDALONE}})
    if given[0].removeprefix("-") == given[0] and given[0] not in commands.get_cmds():
        from builder.problems import suggestion

        print(
            f'ERROR: no command "{given[0]}"{suggestion(given[0], [*commands.get_cmds()])}',
            file=sys.stderr,
        )
        return 3
    return int(commands.run(given) or 0)


if __name__ == "__main__":
    sys.exit(main())
