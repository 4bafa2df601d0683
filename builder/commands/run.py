"""`doit` and `doit run`: doit's own run command, told which targets belong together, quiet on Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from doit.cmd_run import Run as DoitRun

from builder.tasks import SELECTED

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Run(DoitRun):  # type: ignore[misc]
    """doit's run. Before it starts it notes what was asked for; an interrupt ends it with one line."""

    name = "run"

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
    ) -> int:
        """The arguments are doit's, by name: doit reads them from this signature."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        note_selection(self.task_list, self.sel_tasks or [])
        try:
            return int(super()._execute(**arguments) or 0)
        except KeyboardInterrupt:
            print(
                "\nInterrupted. Finished blocks are kept; the same command goes on from there.",
                file=sys.stderr,
            )
            return INTERRUPTED


def note_selection(tasks: Iterable[Any], asked: Iterable[str]) -> None:
    """Which model targets this run includes, and which of them were named one by one."""
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
        if by_name[name].actions or by_name[name].subtask_of:
            SELECTED.targets.add(name.removeprefix("model:"))
        else:
            todo.extend(by_name[name].task_dep)


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    if "*" in pattern:
        return [name for name in names if fnmatchcase(name, pattern)]
    return [pattern]
