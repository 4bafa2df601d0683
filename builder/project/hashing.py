"""Hashing a file of a source while somebody watches."""

from __future__ import annotations

from pathlib import Path

from builder.console.events import Emit, Hashing
from builder.keys import Digest
from builder.project.project import Project


def digest(project: Project, path: Path, emit: Emit) -> Digest:
    """The digest of a file, hashed if it is not known; progress is emitted. Raises OSError."""
    total = path.stat().st_size
    done = 0

    def progress(piece: int) -> None:
        nonlocal done
        done += piece
        emit(Hashing(path.name, done, total))

    return project.sources.digest(path, progress)
