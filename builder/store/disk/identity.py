"""Which file lies at a path now, by its stat: the one place that says when two looks saw the same file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """Size in bytes, times in nanoseconds, inode. Equal identities are the same bytes, but for a racy clock.

    The ctime counts, which no tool can set back. A new link, a rename or a chmod moves the ctime too:
    `content` leaves the ctime out, for those who must not be alarmed by that.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def text(self) -> str:
        return " ".join(map(str, self))

    @property
    def content(self) -> tuple[int, int, int]:
        """Size, mtime and inode."""
        return (self.size, self.mtime_ns, self.inode)


def identity(status: os.stat_result) -> Identity:
    return Identity(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def identity_of(path: Path, *, follow_symlinks: bool = True) -> Identity | None:
    """The identity of what lies there now; None when nothing does, or it cannot be seen."""
    try:
        return identity(path.stat() if follow_symlinks else path.lstat())
    except OSError:
        return None
