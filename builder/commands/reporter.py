"""How doit's run tells of tasks: what runs and what is up to date on stdout, what failed on stderr."""

from __future__ import annotations

from typing import Any

from doit.exceptions import BaseFail, UnmetDependency
from doit.reporter import ConsoleReporter, ZeroReporter

from builder.console.display import mode, tell_error
from builder.console.events import Failed
from builder.console.lines import JsonLines


def tell(task: str, fail: Any) -> None:
    """An error on stderr, as progress is shown: an event where events are asked for, else as text."""
    message = fail.message.rstrip()
    if isinstance(fail, UnmetDependency):  # with --continue
        message = f"{task} was not tried: {message} failed"
    if mode() == "json":
        JsonLines()(Failed(task, getattr(fail, "error", fail.get_name()), message))
    elif getattr(fail, "error", None) or isinstance(fail, UnmetDependency):
        tell_error(message)
    else:  # an exception that nobody expected: a bug of ours, with its traceback
        tell_error(f"{task}: {fail.get_msg().rstrip()}")


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console reporter, with errors on stderr, each once."""

    desc = "console output; errors on stderr"

    def _write_failure(self, result: Any, write_exception: bool = True) -> None:
        tell(result["task"].name, result["exception"])


class ErrorsOnly(ZeroReporter):  # type: ignore[misc]
    """For `--quiet`: nothing but errors."""

    desc = "errors only, on stderr"

    def add_failure(self, task: Any, fail: BaseFail) -> None:
        if fail.report:
            tell(task.name, fail)
