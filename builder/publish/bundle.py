"""What is sent: files with their digests, and what one place lacks of them. Pure but for hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.console.events import Emit, Hashing
from builder.store.statcache import StatCache
from builder.store.types import Blob

CARD = "README.md"
ATTESTATION = "attestation.json"
_PIECE = 1 << 22
_FACT = "sha256"


@dataclass(frozen=True)
class File:
    """A file to publish. `source` is a file of the store, which never changes, or the bytes themselves.

    `sha256` is of the content. `git` is what git calls the content.
    """

    name: str
    size: int
    sha256: str
    git: str
    source: Path | bytes

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class Bundle:
    """Everything that one publication is: the target, its files and its card. `notes` are said each time."""

    target: str
    files: tuple[File, ...]
    card: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


Action = Literal["send", "same", "delete"]


@dataclass(frozen=True)
class Change:
    """What happens to one file of the place."""

    name: str
    size: int
    action: Action


@dataclass(frozen=True)
class Plan:
    """What publishing would do. `state` is a token of the place as it was seen: its commit, or nothing."""

    to: str
    bundle: Bundle
    changes: tuple[Change, ...]
    exists: bool
    state: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether the place has exactly this already."""
        return self.exists and all(change.action == "same" for change in self.changes)

    def named(self, action: Action) -> tuple[str, ...]:
        return tuple(change.name for change in self.changes if change.action == action)

    @property
    def sends(self) -> int:
        """Bytes to send at most."""
        return sum(change.size for change in self.changes if change.action == "send")


def changes(bundle: Bundle, there: Mapping[str, str], ours: Mapping[str, int]) -> tuple[Change, ...]:
    """What a place lacks. `there`: name -> sha256 or git's digest of its files.

    `ours`: name -> size of the files that an earlier publication put there. Only these are deleted.
    """
    made = [
        Change(file.name, file.size, "same" if there.get(file.name) in (file.sha256, file.git) else "send")
        for file in bundle.files
    ]
    names = {file.name for file in bundle.files}
    gone = [
        Change(name, ours[name], "delete") for name in sorted(ours) if name in there and name not in names
    ]
    return (*made, *gone)


def of_bytes(name: str, content: bytes) -> File:
    """A file that is not in the store."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return File(name, len(content), hashlib.sha256(content).hexdigest(), git, content)


def of_blobs(named: Sequence[tuple[str, Blob, Path]], cache: StatCache, emit: Emit) -> list[File]:
    """Files of the store: name, blob, and where it lies. A blob is hashed once, then known by its digest."""
    total, done = sum(blob.size for _, blob, _ in named), 0
    made = []
    for name, blob, place in named:
        known = (cache.get(_FACT, blob.digest) or b"").decode().split()
        if len(known) != 2:
            known = _hashed(place, blob.size)
            cache.put(_FACT, blob.digest, " ".join(known).encode())
        done += blob.size
        emit(Hashing("files to publish", done, total))
        made.append(File(name, blob.size, known[0], known[1], place))
    return made


def _hashed(path: Path, size: int) -> list[str]:
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            git.update(piece)
    return [sha256.hexdigest(), git.hexdigest()]
