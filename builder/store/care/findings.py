"""What verify can find, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from builder.store.disk.identity import identity_of


class Kind(Enum):
    """The value is what a person reads."""

    CORRUPT = "its bytes are not what its name says"
    TRUNCATED = "its size is not the recorded one"
    SWAPPED = "its bytes are another blob's"
    MISSING = "it is missing, and a view needs it"
    UNREADABLE = "it cannot be read"
    BAD_TEXT = "it is damaged, or not of this format"
    EDITED = "it is not what the manifest says"
    FOREIGN = "it does not belong here"
    WRITABLE = "it can be written to"
    OUTDATED = "it shows another build of the same target, and is made again when it is needed"
    DANGLING = "its blob is gone (pruned or lost); a build makes it again when it is needed"

    @property
    def is_damage(self) -> bool:
        """Whether something that was built is not there any more as it was built."""
        return self not in (Kind.FOREIGN, Kind.WRITABLE, Kind.DANGLING, Kind.OUTDATED)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one file; `view` is the folder to replace when it lies in a view.

    `stamp` identifies the file that was looked at: repair leaves alone what was replaced since.
    """

    kind: Kind
    path: Path
    detail: str = ""
    view: Path | None = None
    stamp: tuple[int, int, int] | None = None

    @property
    def message(self) -> str:
        """One line for a person."""
        return f"{self.path}: {self.kind.value}" + (f" ({self.detail})" if self.detail else "")


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Size, mtime and inode of what lies there now; None when nothing does."""
    found = identity_of(path, follow_symlinks=False)
    return found.content if found else None


def found(kind: Kind, path: Path, detail: str = "", view: Path | None = None) -> Finding:
    """A finding about the file as it is now."""
    return Finding(kind, path, detail, view, stamp_of(path))
