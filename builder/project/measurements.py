"""What was measured or chosen once, as text in the store under its key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from builder.errors import BuildError
from builder.keys import Key
from builder.project.toolchain import made_by
from builder.store import blobs, records
from builder.store.holdings import usable_record
from builder.store.layout import Store
from builder.store.locks import build_session
from builder.store.types import Record

_Found = TypeVar("_Found")


def known(store: Store, key: Key, parse: Callable[[str], _Found]) -> _Found | None:
    """What the store has, if `parse` can read it. Damaged text is as good as none: it is measured again."""
    record = usable_record(store, key)
    with suppress(BuildError, OSError, ValueError, TypeError, KeyError):
        return parse(blobs.read(store, record.blob).decode()) if record else None
    return None


def keep(store: Store, key: Key, kind: str, text: str, target: str) -> None:
    """Keeps what was measured or chosen for a target. Raises StoreError."""
    with build_session(store, [key]):
        blob = blobs.ingest(store, [text.encode()])
        records.write(store, Record(key, kind, blob, {**made_by(), "target": target}))
