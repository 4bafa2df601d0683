"""Putting aside what verify found damaged, so that the next build makes it again. Deletes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from builder.store import locks
from builder.store.care.findings import Finding, Kind, stamp_of
from builder.store.disk import durable
from builder.store.layout import Store


def quarantine(store: Store, findings: Iterable[Finding]) -> tuple[Path, ...]:
    """Puts the damaged files aside, views as a whole, and takes write permission away; returns where to.

    What was replaced since it was looked at is left alone. The next build makes again what is gone.
    Raises StoreError.
    """
    moved = []
    seen: set[Path] = set()
    with locks.gc_lock(store), durable.explained(store.root):
        for finding in findings:
            if stamp_of(finding.path) != finding.stamp:
                continue
            if finding.kind is Kind.WRITABLE:
                finding.path.chmod(0o444)
                continue
            path = finding.view or finding.path
            if not finding.kind.is_damage or path in seen or not os.path.lexists(path):
                continue
            seen.add(path)
            moved.append(_put_aside(store, path))
    return tuple(moved)


def _put_aside(store: Store, path: Path) -> Path:
    durable.make_folder(store.quarantine)
    there = store.quarantine / f"{path.name}.{os.urandom(4).hex()}"
    path.rename(there)
    durable.sync_folder(path.parent)
    durable.sync_folder(store.quarantine)
    return there
