"""Reports the tasks of a run: on stdout what runs, what is up to date and the answers, on stderr what failed.

`builder.tasks.load` gives doit this reporter, so it is there also where doit does not know our `run` command.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from doit.exceptions import BaseFail, UnmetDependency
from doit.reporter import ConsoleReporter, ZeroReporter

from builder.console.display import mode, prints_answers, tell_error
from builder.console.events import Failed
from builder.console.interrupt import KEPT, NOTHING, when_interrupted
from builder.console.lines import JsonLines
from builder.errors import BuildError
from builder.tasks.selection import note_selection
from builder.tasks.steps import Step

# What Ctrl-C leaves behind while a task of this kind runs.
LEFT: Mapping[str, str] = {
    "base": "Files that were hashed or downloaded are kept; the same command goes on from there.",
    "adapter": NOTHING,
    "calibration": NOTHING,
    "model": KEPT,
    "eval": "Suites that were measured are kept; the same command measures the others.",
    "threshold": "What was built and measured is kept; the same command goes on from there.",
    "release": "`builder status` says what production is.",
    "rollback": "`builder status` says what production is.",
    "publish": "Nothing half-published is shown. The same command goes on from there.",
    "clean": "What was dropped stays dropped; the same command drops the rest.",
}


def tell(task: str, fail: Any) -> None:
    """Writes the failure of a task to stderr: as an event if progress is shown as JSON, else as text."""
    message, error = described(task, fail)
    if mode() == "json":
        JsonLines()(Failed(task, error, message))
    elif getattr(fail, "error", None) or isinstance(fail, UnmetDependency):
        tell_error(message)
    else:  # an unexpected exception is a bug of ours, so show its traceback
        tell_error(f"{task}: {fail.get_msg().rstrip()}")


def described(task: str, fail: Any) -> tuple[str, str]:
    """The message and the name of a failure."""
    message = fail.message.rstrip()
    if isinstance(fail, UnmetDependency):  # happens only with --continue
        message = f"{task} was not tried: {message} failed"
    return message, getattr(fail, "error", fail.get_name())


class Noting:
    """Notes the selection, for one pass over each model, and what Ctrl-C would leave behind."""

    def initialize(self, tasks: Mapping[str, Any], selected_tasks: Collection[str]) -> None:
        note_selection(tasks.values(), selected_tasks)

    def execute_task(self, task: Any) -> None:
        if task.actions:
            when_interrupted(LEFT.get(task.name.partition(":")[0], ""))
        super().execute_task(task)  # type: ignore[misc]


class Reporter(Noting, ConsoleReporter):  # type: ignore[misc]
    """doit's console reporter, but errors go to stderr, each once, and answers that are known are shown."""

    desc = "console output; errors on stderr"

    def skip_uptodate(self, task: Any) -> None:
        super().skip_uptodate(task)
        step = (
            task.actions[0].py_callable if task.actions and hasattr(task.actions[0], "py_callable") else None
        )
        if isinstance(step, Step) and prints_answers():
            self.outstream.flush()
            try:
                step.tell()
            except BuildError as error:
                tell_error(error.report)

    def _write_failure(self, result: Any, write_exception: bool = True) -> None:
        tell(result["task"].name, result["exception"])


class ErrorsOnly(Noting, ZeroReporter):  # type: ignore[misc]
    """The reporter for `--quiet`, which shows only errors."""

    desc = "errors only, on stderr"

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        if fail.report:
            tell(task.name, fail)


class Collecting(ErrorsOnly):
    """The reporter for `--json`: it collects what was done. `builder.commands.run` prints the document."""

    def __init__(self, outstream: Any = sys.stdout, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(outstream, options or {})
        self.tasks: list[str] = []
        self.failed: list[dict[str, str]] = []

    def execute_task(self, task: Any) -> None:
        super().execute_task(task)
        self._add(task)

    def skip_uptodate(self, task: Any) -> None:
        self._add(task)

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        super().add_failure(task, fail)
        message, error = described(task.name, fail)
        self.failed.append({"task": task.name, "error": error, "message": message})

    def _add(self, task: Any) -> None:
        if task.actions and task.name not in self.tasks:
            self.tasks.append(task.name)
