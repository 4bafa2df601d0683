"""Ends a command. Only this module turns a BuildError into text and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.console.display import tell_error
from builder.console.interrupt import INTERRUPTED, tell_interrupt
from builder.console.words import from_here
from builder.errors import BuildError

PIPE_CLOSED = 141  # 128 + SIGPIPE


class Unwritable(BuildError):
    """{path} cannot be written: {what}."""

    exit_code = 2


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError while a file of the project is written into Unwritable."""
    try:
        yield
    except OSError as error:
        raise Unwritable(path=from_here(path), what=os.strerror(error.errno or 0)) from error


def guarded(run: Callable[[], int]) -> int:
    """Runs a command and returns its exit code. A BuildError becomes text on stderr.

    Other exceptions are bugs and show a traceback.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BuildError as error:
        tell_error(error.report)
        return error.exit_code
    except KeyboardInterrupt:
        tell_interrupt()
        return INTERRUPTED
    except BrokenPipeError:  # for example `doit status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code
