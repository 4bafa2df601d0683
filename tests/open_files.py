"""Which files this process has open. Counting all would count those of other threads, of other tests too."""

from __future__ import annotations

import os
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")  # Linux


def open_below(folder: Path) -> list[str]:
    """The open files of a folder, deleted ones too, once for each descriptor. Empty where nobody can tell."""
    found = []
    for each in DESCRIPTORS.iterdir() if DESCRIPTORS.exists() else ():
        try:
            target = os.readlink(each)  # noqa: PTH115 - a deleted file has no path
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(f"{folder.resolve()}{os.sep}"):
            found.append(target)
    return found
