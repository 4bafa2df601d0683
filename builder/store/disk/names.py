"""Which names of files count, and which two names are one where a file system ignores case."""

from __future__ import annotations

from collections.abc import Iterable


def is_hidden(name: str) -> bool:
    """Whether a file is another program's own business: it is never read, copied, or called a stranger.

    macOS keeps the attributes of `x` in `._x` (AppleDouble) on exFAT, FAT and network disks, and how a folder
    is shown in `.DS_Store`. Both appear at any time beside our files and beside a person's.
    """
    return name.startswith(".")


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that differ only by case."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            return other, name
    return None
