"""The message for Ctrl-C, printed as one line instead of a traceback.

What has been kept depends on what was running, so whatever runs notes its own words first.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

TYPE_CHECKING = False  # this module is the first to be loaded, and loads next to nothing itself
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NOTHING = "Nothing was changed."
KEPT = "Finished blocks are kept; the same command goes on from there."

_said = [NOTHING]


def when_interrupted(words: str) -> None:
    """Notes what Ctrl-C would mean from now on."""
    _said[0] = words


@contextmanager
def meaning(words: str) -> Iterator[None]:
    """While this runs, Ctrl-C means something else. Afterwards it means what it meant before."""
    former = _said[0]
    when_interrupted(words)
    yield
    when_interrupted(former)


def tell_interrupt() -> None:
    """Prints what an interrupt has left behind."""
    print(f"\nInterrupted. {_said[0]}".rstrip(), file=sys.stderr)


def one_line_interrupts() -> None:
    """Makes Ctrl-C end in one line where nobody catches it: while modules load, in doit's own commands."""
    former = sys.excepthook
    if getattr(former, "is_ours", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            tell_interrupt()
        else:
            former(kind, error, trace)

    hook.is_ours = True  # type: ignore[attr-defined]
    sys.excepthook = hook
