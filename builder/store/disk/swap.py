"""Putting a new folder in the place of an old one in one step, by the kernel's exchange of two names."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux, renameat2
_RENAME_SWAP = 2  # macOS, renamex_np
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def into_place(staged: Path, final: Path, spare: Path) -> None:
    """Gives the folder `staged` the name `final`; what had that name is at `staged` or `spare` afterwards.

    Atomic where the kernel and the file system can exchange names; elsewhere `final` is missing for an
    instant, and after a crash in that instant until it is made again. Raises OSError.
    """
    while True:
        if not os.path.lexists(final):
            try:
                staged.rename(final)
                return
            except OSError as error:  # somebody else has just put theirs there
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
        try:
            exchange(staged, final)
            return
        except FileNotFoundError:  # somebody else has just removed it
            if not staged.exists():
                raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            final.rename(spare)
            staged.rename(final)
            spare.rename(staged)
            return


def exchange(one: Path, other: Path) -> None:
    """Exchanges two names. Raises OSError: ENOSYS, EINVAL or ENOTSUP where that cannot be done."""
    function = _exchange_function()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(os.fsencode(one), os.fsencode(other)) != 0:
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _exchange_function() -> Callable[[bytes, bytes], int] | None:
    import ctypes  # 2 ms

    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
            return lambda one, other: int(swap(one, other, _RENAME_SWAP))
        renameat2 = library.renameat2
    except AttributeError:  # an old C library
        return None
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return lambda one, other: int(renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))
