"""Paths in words."""

from __future__ import annotations

from pathlib import Path


def from_here(path: Path) -> str:
    """Relative to the current folder where it is below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
