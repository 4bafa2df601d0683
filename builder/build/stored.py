"""Blocks of the store as tensors in memory. Bytes that are not those of the record are never used."""

from __future__ import annotations

from builder.store import blobs
from builder.store.layout import Store
from builder.store.types import Record
from builder.weights.safetensors import header_of
from builder.weights.shards import RawTensor


def read_block(store: Store, record: Record, label: str) -> dict[str, RawTensor]:
    """The tensors of a block, by name. `label` names the target in errors.

    The seal of a blob shows an edit, and not what a bad disk does. So all bytes are hashed.

    Raises StoreError, and SourceInvalid for a blob that is not a safetensors file.
    """
    content = blobs.read(store, record.blob)
    header = header_of(content, blobs.path(store, record.blob.digest), label)
    view = memoryview(content)
    return {t.name: RawTensor(t.dtype, t.shape, view[t.start : t.end]) for t in header.tensors}
