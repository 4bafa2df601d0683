"""Where a declaration lies: in a folder, or in the nearest folder above it, as git finds its repository."""

from __future__ import annotations

from pathlib import Path

DECLARATION = "artifacts.toml"


def project_folder(start: Path) -> Path | None:
    """The folder at or above `start` that holds an artifacts.toml. None if there is none."""
    return next((folder for folder in (start, *start.parents) if (folder / DECLARATION).is_file()), None)
