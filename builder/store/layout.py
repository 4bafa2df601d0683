"""Where everything in a store lies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder.store.disk.names import is_hidden


@dataclass(frozen=True)
class Store:
    """A store's folder and the names in it. `builder.store.format.open_store` opens and creates a store."""

    root: Path
    checkout: str = ""  # who opens it, where several checkouts share it; empty: the checkout that it lies in

    @property
    def _own(self) -> Path:
        """Names that a person gave belong to one checkout: what they name must not depend on another
        checkout.
        """
        return self.root / "checkouts" / self.checkout if self.checkout else self.root

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
        return self._own / "models"

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

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
        return self._own / "pins"

    @property
    def roots(self) -> Path:
        return self.root / "roots"

    @property
    def state(self) -> Path:
        return self.root / "state.sqlite"

    @property
    def version(self) -> Path:
        return self.root / "version"


def homes(store: Store) -> tuple[Store, ...]:
    """The store as each checkout opens it: the one that it lies in, and those that share it."""
    with suppress(FileNotFoundError):
        shared = sorted(
            folder.name for folder in (store.root / "checkouts").iterdir() if is_plain(folder.name)
        )
        return (Store(store.root), *(Store(store.root, name) for name in shared))
    return (Store(store.root),)


def is_plain(name: str) -> bool:
    """Whether a name is one path component that the store may use: not empty, not hidden."""
    return bool(name) and not is_hidden(name) and "/" not in name and "\0" not in name


def is_file_name(name: str) -> bool:
    """Whether a file of a view may have this name: a plain name, or a plain name in one plain folder."""
    folder, slash, file = name.rpartition("/")
    return is_plain(file) and (not slash or is_plain(folder))
