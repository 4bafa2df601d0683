"""How the events of a run are shown: one live display on a terminal, plain lines elsewhere, or JSON lines.

The environment variable BUILDER_PROGRESS (live, plain, json, silent) chooses the display. `doit --progress`
sets the variable. Everything goes to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Literal

from builder.console.events import Emit, silent
from builder.console.lines import JsonLines, Plain

VARIABLE = "BUILDER_PROGRESS"
ANSWERS = "BUILDER_ANSWERS"  # "json": stdout is for one JSON document, so no table is printed
Mode = Literal["live", "plain", "json", "silent"]
MODES: Mapping[str, Mode] = {"live": "live", "plain": "plain", "json": "json", "silent": "silent"}

_TURN = Lock()


def mode() -> Mode:
    """How events are shown in this process."""
    asked = MODES.get(os.environ.get(VARIABLE, ""))
    if asked:
        return asked
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return "live" if is_terminal and not os.environ.get("CI") else "plain"


def prints_answers() -> bool:
    """Whether a task prints its tables and sentences on stdout."""
    return mode() in ("live", "plain") and os.environ.get(ANSWERS) != "json"


@contextmanager
def showing() -> Iterator[Emit]:
    """Yields the function that shows the events of one task. A live display always disappears at the end."""
    match mode():
        case "silent":
            yield silent
        case "json":
            yield JsonLines()
        case "live" if (turn := _take_turn()) is not None:
            from builder.console.live import Live

            live = Live()
            try:
                yield live
            finally:
                live.stop()
                turn()
        case _:
            yield Plain()


def _take_turn() -> Callable[[], None] | None:
    """Reserves the terminal for a live display, and returns the function that gives the terminal back.

    None in a worker process, and while another thread has a live display.
    """
    import multiprocessing

    if multiprocessing.parent_process() is not None or not _TURN.acquire(blocking=False):
        return None
    return _TURN.release


def tell_error(text: str) -> None:
    """Prints an error on stderr, in every mode."""
    print(f"ERROR: {text}", file=sys.stderr)
