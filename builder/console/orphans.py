"""A process that works for another one ends with it, however that one ends."""

from __future__ import annotations

import os
import time
from threading import Thread

_EVERY = 0.5  # seconds


def end_with_parent() -> None:
    """From now on this process ends soon after the one that started it, which may have been killed.

    Nobody would read what it computes, and the next run needs its memory.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    Thread(target=watch, name="orphan", daemon=True).start()
