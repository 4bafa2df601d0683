"""What the store holds as a whole: a record counts with its blob, a manifest with all of its blobs."""

from __future__ import annotations

from builder.keys import Key
from builder.store import blobs, records
from builder.store.layout import Store
from builder.store.types import Manifest, Record


def usable_record(store: Store, key: Key) -> Record | None:
    """The record of an action whose blob is really there."""
    record = records.read(store, key)
    return record if record is not None and blobs.has(store, record.blob) else None


def holds(store: Store, manifest: Manifest) -> bool:
    """Whether all blobs of a manifest are there."""
    return all(blobs.has(store, entry.blob) for entry in manifest.files)


def whole_manifest(store: Store, key: Key) -> Manifest | None:
    """The manifest of a key whose blobs are all there."""
    manifest = records.read_manifest(store, key)
    return manifest if manifest is not None and holds(store, manifest) else None
