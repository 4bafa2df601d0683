"""`doit` and `doit run`: doit's run command, which also notes the selected targets and handles Ctrl-C."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand

from builder.commands import COMMANDS
from builder.commands.guard import guarded
from builder.commands.reporter import ErrorsOnly, Reporter
from builder.console.display import MODES, VARIABLE, showing
from builder.console.interrupt import INTERRUPTED
from builder.console.words import nearest, quoted
from builder.errors import BuildError
from builder.project.preflight import NO_SPACE_CHECK
from builder.tasks.uptodate import SELECTED

OPT_PROGRESS: Mapping[str, Any] = {
    "name": "progress",
    "long": "progress",
    "type": str,
    "default": "",
    "choices": [(name, "") for name in MODES],
    "help": "how progress is shown on stderr; default: live on a terminal, else plain",
}
OPT_QUIET: Mapping[str, Any] = {
    "name": "quiet",
    "short": "q",
    "long": "quiet",
    "type": bool,
    "default": False,
    "help": "print errors only",
}
OPT_SPACE: Mapping[str, Any] = {
    "name": "no_space_check",
    "long": "no-space-check",
    "type": bool,
    "default": False,
    "help": "build although the disk seems too small for it",
}
OPT_LOCKED: Mapping[str, Any] = {
    "name": "locked",
    "long": "locked",
    "type": bool,
    "default": False,
    "help": "refuse to run unless all inputs are those of artifacts.lock",
}


class UnknownTask(BuildError):
    """there is no task or target "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows all tasks. `doit help` shows the commands."


class Run(DoitRun):  # type: ignore[misc]
    """doit's run. It notes the selected targets before it starts. Ctrl-C ends it with one line."""

    name = "run"
    cmd_options = (*DoitRun.cmd_options, OPT_PROGRESS, OPT_QUIET, OPT_LOCKED, OPT_SPACE)

    def execute(self, params: Any, args: Sequence[str]) -> int:
        code = guarded(lambda: int(super(Run, self).execute(params, args) or 0))
        if code == INTERRUPTED and threading.active_count() > 1:
            # doit's threads are daemons that may be inside mlx. A usual exit would abort the process.
            sys.stderr.flush()
            os._exit(code)
        return code

    def _execute(
        self,
        outfile: Any,
        verbosity: Any = None,
        always: bool = False,
        continue_: bool = False,
        reporter: Any = "console",
        num_process: int = 0,
        par_type: str = "process",
        single: bool = False,
        auto_delayed_regex: bool = False,
        force_verbosity: bool = False,
        failure_verbosity: int = 0,
        pdb: bool = False,
        progress: str = "",
        quiet: bool = False,
        locked: bool = False,
        no_space_check: bool = False,
    ) -> int:
        """Runs the tasks. doit reads the names of these arguments from this signature."""
        arguments = dict(locals())
        for ours in ("self", "__class__", "progress", "quiet", "locked", "no_space_check"):
            arguments.pop(ours, None)
        if locked:
            _check_lock()
        if no_space_check:
            os.environ[NO_SPACE_CHECK] = "1"  # worker processes inherit it
        note_selection(self.task_list, self.sel_tasks or [])
        if quiet:
            arguments["reporter"] = ErrorsOnly
        elif arguments["reporter"] == "console":
            arguments["reporter"] = Reporter
        if quiet or progress:
            os.environ[VARIABLE] = progress or "silent"  # worker processes inherit it
        try:
            return int(super()._execute(**arguments) or 0)
        except InvalidCommand as error:
            if error.not_found is None:
                raise
            tasks = [task.name for task in self.task_list]
            commands = COMMANDS if self.name == "run" else ()  # doit takes the typo `doit staus` for a task
            raise unknown_task(str(error.not_found), [*tasks, *commands]) from None


def unknown_task(name: str, words: Sequence[str]) -> UnknownTask:
    """The error for an unknown name, with the nearest of `words`. Targets may be named without `model:`."""
    targets = [word.removeprefix("model:") for word in words if word.startswith("model:")]
    close = nearest(name, [*targets, *words])
    return UnknownTask(name=name, near=f"; did you mean {quoted(close)}?" if close else ".")


def _check_lock() -> None:
    """Checks all inputs against artifacts.lock. Raises LockDiffers, LockInvalid."""
    from builder.build.lockfile import check
    from builder.project.project import Project

    with showing() as emit:
        check(Project.load(Path("artifacts.toml")), emit)


def note_selection(tasks: Iterable[Any], asked: Iterable[str]) -> None:
    """Notes in SELECTED which targets this run includes, and which of them were named one by one."""
    by_name = {task.name: task for task in tasks}
    SELECTED.targets.clear()
    SELECTED.named.clear()
    todo = [name for pattern in asked for name in _matches(pattern, by_name)]
    SELECTED.named.update(name.removeprefix("model:") for name in todo)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        if name.startswith("model:") and by_name[name].actions:
            SELECTED.targets.add(name.removeprefix("model:"))
        else:  # a group, or a task that needs targets, such as eval: build these in one pass too
            todo.extend(by_name[name].task_dep)


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    if "*" in pattern:
        return [name for name in names if fnmatchcase(name, pattern)]
    return [pattern]
