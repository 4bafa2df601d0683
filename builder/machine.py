"""What the machine has."""

from __future__ import annotations

import os


def memory() -> int:
    """Bytes of memory of this machine. 0 where nobody can tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
