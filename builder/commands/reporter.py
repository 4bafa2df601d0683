"""Reports the tasks of a run: on stdout what runs and what is up to date, on stderr what failed."""

from __future__ import annotations

from typing import Any

from doit.exceptions import BaseFail, UnmetDependency
from doit.reporter import ConsoleReporter, ZeroReporter

from builder.console.display import mode, tell_error
from builder.console.events import Failed
from builder.console.lines import JsonLines


def tell(task: str, fail: Any) -> None:
    """Writes the failure of a task to stderr: as an event if progress is shown as JSON, else as text."""
    message = fail.message.rstrip()
    if isinstance(fail, UnmetDependency):  # happens only with --continue
        message = f"{task} was not tried: {message} failed"
    if mode() == "json":
        JsonLines()(Failed(task, getattr(fail, "error", fail.get_name()), message))
    elif getattr(fail, "error", None) or isinstance(fail, UnmetDependency):
        tell_error(message)
    else:  # an unexpected exception is a bug of ours, so show its traceback
        tell_error(f"{task}: {fail.get_msg().rstrip()}")


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console reporter, but with errors on stderr, each error once."""

    desc = "console output; errors on stderr"

    def _write_failure(self, result: Any, write_exception: bool = True) -> None:
        tell(result["task"].name, result["exception"])


class ErrorsOnly(ZeroReporter):  # type: ignore[misc]
    """The reporter for `--quiet`, which shows only errors."""

    desc = "errors only, on stderr"

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        if fail.report:
            tell(task.name, fail)
