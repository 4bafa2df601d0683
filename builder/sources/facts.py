"""What planning must know about a source, or why it is not known, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.errors import BuildError
from builder.keys import Digest, Key
from builder.store.types import FileEntry
from builder.weights.structure import Structure


@dataclass(frozen=True)
class BaseFacts:
    """A fingerprinted base: the digest of its weights and config, its structure, and the files to copy."""

    weights: Digest
    structure: Structure
    aux: tuple[FileEntry, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """A fingerprinted adapter: its digest, block -> identity of its slice, and the paths that it changes."""

    digest: Digest
    slices: Mapping[str, Key]
    paths: frozenset[str]


@dataclass(frozen=True)
class Unknown:
    """A source that cannot be used for planning yet. `reason` is one clause.

    With `error`, the source can never be used as it is.
    """

    reason: str
    error: BuildError | None = None
