"""Where everything in a store lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from builder.store.disk.names import is_hidden


@dataclass(frozen=True)
class Store:
    """A store's folder and the names in it. `builder.store.format.open_store` opens and creates a store."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def actions(self) -> Path:
        return self.root / "actions"

    @property
    def targets(self) -> Path:
        return self.root / "targets"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def evals(self) -> Path:
        return self.root / "evals"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def pins(self) -> Path:
        return self.root / "pins"

    @property
    def roots(self) -> Path:
        return self.root / "roots"

    @property
    def state(self) -> Path:
        return self.root / "state.sqlite"

    @property
    def version(self) -> Path:
        return self.root / "version"


def is_plain(name: str) -> bool:
    """Whether a name is one path component that the store may use: not empty, not hidden."""
    return bool(name) and not is_hidden(name) and "/" not in name and "\0" not in name
