"""What all commands share: they find the project, and end in one line and an exit code, whatever happens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from doit.cmd_base import Command

from builder.errors import BuildError

if TYPE_CHECKING:
    from builder.project import Project

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
KEPT = "Interrupted. Finished blocks are kept; the same command goes on from there."

OPT_JSON: Mapping[str, Any] = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print one JSON document (docs/cli.md describes it)",
}


class ProjectCommand(Command):  # type: ignore[misc]
    """A command over the project of the current folder. Its `run` returns the exit code."""

    cmd_options: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        raise NotImplementedError

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        def run() -> int:
            from builder.project import Project

            return self.run(Project.load(declaration(opt_values)), opt_values, pos_args)

        return guarded(run)


def declaration(options: Mapping[str, Any]) -> Path:
    """The artifacts.toml that `doit -d FOLDER` or `doit -f FOLDER/dodo.py` means."""
    folder = options.get("cwdPath") or os.path.dirname(options.get("dodoFile") or "")  # noqa: PTH120
    return Path(folder) / "artifacts.toml"


def guarded(run: Callable[[], int]) -> int:
    """The one place that turns a BuildError into text and an exit code; other errors are bugs and show."""
    try:
        code = run()
        sys.stdout.flush()
    except BuildError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{KEPT}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `doit status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def print_json(kind: str, **values: object) -> None:
    """One document: what it is and the version of its schema first, then the values."""
    print(json.dumps({"schema": f"modelkiln/{kind}/1", **values}, indent=2, default=_plain))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
