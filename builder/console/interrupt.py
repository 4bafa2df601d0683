"""The message for Ctrl-C, printed as one line instead of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
KEPT = "Interrupted. Finished blocks are kept; the same command goes on from there."


def one_line_interrupts() -> None:
    """Makes Ctrl-C during doit's own commands (list, info, ...) end in one line, not in a traceback."""
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"\n{KEPT}", file=sys.stderr)
        else:
            former(kind, error, trace)

    sys.excepthook = hook
