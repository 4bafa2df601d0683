"""Ends a command. Only this module turns a BuildError into text and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from builder.console.display import tell_error
from builder.console.interrupt import INTERRUPTED, KEPT
from builder.errors import BuildError

PIPE_CLOSED = 141  # 128 + SIGPIPE


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
        print(f"\n{KEPT}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # for example `doit status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code
