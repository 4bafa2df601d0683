"""What the store remembers, as frozen values and as text. No IO here; the format is docs/store-format.md.

A Record says which blob an action produced. A Manifest says which files make up a target (or an imported
base) and what came from what. Records are JSON (thousands of them, read on every run), manifests are TOML
(a person reads them).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

import tomli_w

from builder.keys import Digest, Key

FORMAT = 1

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Blob:
    """An immutable file in the store: BLAKE3 of its bytes, size in bytes."""

    digest: Digest
    size: int


@dataclass(frozen=True)
class Record:
    """key -> blob, written after the blob. `kind` is block, config, structure, import or checkpoint."""

    key: Key
    kind: str
    blob: Blob
    provenance: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: its name in the view, and the blob that holds its bytes."""

    name: str
    blob: Blob


@dataclass(frozen=True)
class Manifest:
    """All files of a target, and where they came from.

    `inputs` are the digests that made the key, `settings` what was asked for, `toolchain` what made it
    (recorded, not keyed), `measures` figures of the build (bytes, bits per weight, survival).
    """

    key: Key
    kind: str  # "target", "base" or "adapter"
    name: str
    created: str  # RFC 3339, UTC
    files: tuple[FileEntry, ...]
    inputs: Mapping[str, Scalar] = field(default_factory=dict)
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    toolchain: Mapping[str, Scalar] = field(default_factory=dict)
    measures: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.blob.size for entry in self.files)

    @property
    def digests(self) -> frozenset[Digest]:
        return frozenset(entry.blob.digest for entry in self.files)


class BadRecord(ValueError):
    """Text that is not a record or manifest of a format this version reads."""


def record_to_text(record: Record) -> str:
    return (
        json.dumps(
            {
                "format": FORMAT,
                "key": record.key,
                "kind": record.kind,
                "digest": record.blob.digest,
                "size": record.blob.size,
                "provenance": dict(record.provenance),
            },
            sort_keys=True,
        )
        + "\n"
    )


def record_from_text(text: str) -> Record:
    """Raises BadRecord."""
    try:
        data = json.loads(text)
        _check_format(data["format"])
        return Record(
            Key(data["key"]),
            data["kind"],
            Blob(Digest(data["digest"]), int(data["size"])),
            data["provenance"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadRecord(f"not a record: {error}") from error


def manifest_to_text(manifest: Manifest) -> str:
    return tomli_w.dumps(
        {
            "format": FORMAT,
            "key": manifest.key,
            "kind": manifest.kind,
            "name": manifest.name,
            "created": manifest.created,
            "inputs": dict(manifest.inputs),
            "settings": dict(manifest.settings),
            "toolchain": dict(manifest.toolchain),
            "measures": dict(manifest.measures),
            "files": [
                {"name": entry.name, "digest": entry.blob.digest, "size": entry.blob.size}
                for entry in manifest.files
            ],
        }
    )


def manifest_from_text(text: str) -> Manifest:
    """Raises BadRecord."""
    try:
        data = tomllib.loads(text)
        _check_format(data["format"])
        files = tuple(
            FileEntry(item["name"], Blob(Digest(item["digest"]), int(item["size"]))) for item in data["files"]
        )
        return Manifest(
            Key(data["key"]),
            data["kind"],
            data["name"],
            data["created"],
            files,
            data["inputs"],
            data["settings"],
            data["toolchain"],
            data["measures"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadRecord(f"not a manifest: {error}") from error


def _check_format(value: object) -> None:
    if value != FORMAT:
        raise BadRecord(f"format {value!r}, this version reads {FORMAT}")
