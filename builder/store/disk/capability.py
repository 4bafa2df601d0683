"""What the file system of a folder can do. Tried once in a process, on tiny files that are deleted at once.

A folder that cannot be written to tells nothing. Then links count as possible, and names as case-sensitive.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_READ_ONLY = 0o444
_ATTEMPTS = 3


def links(folder: Path) -> bool:
    """Whether a file can get a second name or a clone there, so that a view of blobs costs no space."""
    return _works(folder, _can_link)


def ignores_case(folder: Path) -> bool:
    """Whether two names that differ only by case are one file there."""
    return _works(folder, _can_ignore_case, otherwise=False)


def keeps_modes(folder: Path) -> bool:
    """Whether a file can be made read-only there, and others stay writable."""
    return _works(folder, _can_keep_modes, otherwise=False)


def reflink(source: Path, destination: Path) -> None:
    """A file that shares the bytes until one of them is written to. Raises OSError."""
    import reflink_copy

    reflink_copy.reflink(source, destination)


def hardlink(source: Path, destination: Path) -> None:
    """A second name of the same file. Raises OSError."""
    destination.hardlink_to(source)


def _can_link(file: Path, other: Path) -> bool:
    for way in (reflink, hardlink):
        try:
            way(file, other)
            return True
        except OSError:
            other.unlink(missing_ok=True)
    return False


def _can_ignore_case(file: Path, other: Path) -> bool:
    return file.with_name(file.name.upper()).exists()


def _can_keep_modes(file: Path, other: Path) -> bool:
    with suppress(OSError):
        file.chmod(_READ_ONLY)
    other.write_bytes(b"x")
    return _is_read_only(file) and not _is_read_only(other)


def _is_read_only(file: Path) -> bool:
    return not stat.S_IMODE(file.stat().st_mode) & 0o222


def _works(folder: Path, attempt: Callable[[Path, Path], bool], otherwise: bool = True) -> bool:
    try:
        device = folder.stat().st_dev
    except OSError:
        return otherwise
    return _tried(folder, device, attempt, otherwise)


@functools.cache
def _tried(folder: Path, device: int, attempt: Callable[[Path, Path], bool], otherwise: bool) -> bool:
    """`device`: another disk may be mounted at the same folder."""
    for _ in range(_ATTEMPTS):
        file, other = (folder / f"a{os.urandom(16).hex()[1:]}" for _ in range(2))
        try:
            file.write_bytes(b"x")
            answer = attempt(file, other)
            if file.exists():  # else somebody has swept the folder meanwhile
                return answer
        except FileNotFoundError:
            continue
        except OSError:
            return otherwise
        finally:
            for each in (file, other):
                with suppress(OSError):
                    each.unlink(missing_ok=True)
    return otherwise
