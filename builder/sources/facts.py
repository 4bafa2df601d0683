"""What planning must know of a source, as frozen values; or why it is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.errors import BuildError
from builder.keys import Digest, Key
from builder.store.types import FileEntry
from builder.weights.structure import Structure


@dataclass(frozen=True)
class BaseFacts:
    """A fingerprinted base: digest of its weights and config, its structure, the files copied as they are."""

    weights: Digest
    structure: Structure
    aux: tuple[FileEntry, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """A fingerprinted adapter: its own digest, and the digest of each block's slice of it."""

    digest: Digest
    slices: Mapping[str, Key]
    paths: frozenset[str]


@dataclass(frozen=True)
class Unknown:
    """A source that cannot be used for planning yet, and why (one clause).

    `error`: it never can, as it is.
    """

    reason: str
    error: BuildError | None = None
