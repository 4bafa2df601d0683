"""A free check that a blob was not edited: its digest, folded into the microseconds of its mtime.

`stat` is enough to see that somebody wrote to the file, also through a hard link in a view: a write sets the
mtime to the present, whose microseconds match the digest once in a million. The seconds stay true. A file
system with coarse times (a multiple of 10 ms) tells nothing, and nothing is concluded. A broken seal is no
proof of damage either (a copied store has new mtimes): the bytes are hashed, and sealed again.
"""

from __future__ import annotations

import os

from builder.keys import Digest

_SECOND = 1_000_000_000
_COARSE = 10_000_000


def intact(mtime_ns: int, digest: Digest) -> bool:
    """Whether a file with this mtime can still be the one that was sealed."""
    part = mtime_ns % _SECOND
    return part == _fraction(digest) or part % _COARSE == 0


def close(file: int | str, status: os.stat_result, digest: Digest) -> None:
    """Seals a file (path or descriptor) whose bytes are known to be `digest`. Raises OSError."""
    second = status.st_mtime_ns // _SECOND
    os.utime(file, ns=(status.st_atime_ns, second * _SECOND + _fraction(digest)))


def _fraction(digest: Digest) -> int:
    return (int(digest[:8], 16) % 999_999 + 1) * 1000
