"""Records (action key -> blob) and manifests (all files of a target), by key.

Damaged, misfiled or unknown text reads as None: doubt rebuilds. Written only after what they speak of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from builder.keys import Key, is_digest
from builder.store import seals
from builder.store.layout import Store
from builder.store.types import (
    BadRecord,
    Blob,
    Manifest,
    Record,
    manifest_from_text,
    manifest_to_text,
    record_from_text,
    record_to_text,
)


def path(store: Store, key: Key) -> Path:
    """Where the record lies or would lie. Raises ValueError for text that is no key."""
    return store.actions / _name(key)[:2] / key


def manifest_path(store: Store, key: Key) -> Path:
    """Where the manifest lies or would lie. Raises ValueError for text that is no key."""
    return store.targets / f"{_name(key)}.toml"


def read(store: Store, key: Key) -> Record | None:
    """The record of an action; whether its blob is there is another question (`blobs.has`)."""
    return parse_record(seals.read(path(store, key)), key)


def write(store: Store, record: Record) -> None:
    """Remembers an action's blob, atomically, after the blob; the next manifest makes it durable.

    Raises StoreError.
    """
    seals.write(store, path(store, record.key), record_to_text(record), order_only=True)


def read_manifest(store: Store, key: Key) -> Manifest | None:
    """The manifest of a target or base."""
    return parse_manifest(seals.read(manifest_path(store, key)), key)


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Remembers a target's files, durably and atomically, after all of them; what the store says of the key
    now.

    A manifest is written once for a key: one that names the same files stays as it is, with its time and its
    measures, since views hold a copy of it. Its bytes are flushed in full before its name appears, and every
    earlier blob and record with them. The caller holds the lock of the key. Raises StoreError.
    """
    former = read_manifest(store, manifest.key)
    if former is not None and former.files == manifest.files:
        return former
    seals.write(store, manifest_path(store, manifest.key), manifest_to_text(manifest))
    return manifest


def manifest_bytes(store: Store, key: Key) -> bytes | None:
    """The file of a manifest as it is; None when there is none."""
    try:
        return manifest_path(store, key).read_bytes()
    except OSError:
        return None


def manifests(store: Store) -> Iterator[Manifest]:
    """Every readable manifest, in order of key."""
    for key in manifest_keys(store):
        manifest = read_manifest(store, key)
        if manifest is not None:
            yield manifest


def manifest_keys(store: Store) -> list[Key]:
    """The keys that have a manifest file, readable or not, sorted."""
    return sorted(Key(name[:-5]) for name in _listdir(store.targets) if is_key_file(name, ".toml"))


def record_keys(store: Store) -> list[Key]:
    """The keys that have a record file, readable or not, sorted."""
    return sorted(
        Key(name)
        for shard in _listdir(store.actions)
        for name in _listdir(store.actions / shard)
        if is_key_file(name) and name[:2] == shard
    )


def mark_used(store: Store, key: Key) -> None:
    """Remembers that a target was used now (the mtime of its manifest; gc drops the least recently used)."""
    with suppress(OSError):
        os.utime(manifest_path(store, key))


def is_key_file(name: str, suffix: str = "") -> bool:
    """Whether a file name is a key and `suffix`."""
    return len(name) == 64 + len(suffix) and name.endswith(suffix) and is_digest(name[:64])


def parse_record(text: str | None, key: Key) -> Record | None:
    """The record in `text` if it is a sound one of `key`."""
    if text is None:
        return None
    try:
        record = record_from_text(text)
    except (BadRecord, RecursionError):
        return None
    return record if record.key == key and _is_sound(record.blob) else None


def parse_manifest(text: str | None, key: Key) -> Manifest | None:
    """The manifest in `text` if it is a sound one of `key`."""
    if text is None:
        return None
    try:
        manifest = manifest_from_text(text)
    except (BadRecord, RecursionError):
        return None
    return manifest if manifest.key == key and all(_is_sound(e.blob) for e in manifest.files) else None


def _is_sound(blob: Blob) -> bool:
    return isinstance(blob.digest, str) and is_digest(blob.digest) and blob.size >= 0


def _name(key: Key) -> Key:
    if not is_digest(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def _listdir(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []
