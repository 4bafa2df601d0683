"""A small build as the store sees it: run whole, killed, or with failing system calls (test_store_crash.py).

The store holds an old target `m`. The run builds an intermediate target, from it the new `m` (which shares
a block with the old one), swaps the view, prunes the intermediate, and lets gc take what the old one leaves.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from builder.errors import BuildError
from builder.keys import Key, make_key
from builder.store import blobs, locks, pins, records, views
from builder.store.care import drop as prune
from builder.store.care import gc, inventory
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import FileEntry, Manifest, Record

PARTS = {"old": ("shared", "old1"), "between": ("wide0", "wide1"), "new": ("shared", "new0", "new1")}
NAMES = {"old": "m", "between": "m_f16", "new": "m"}


def target_key(which: str) -> Key:
    return make_key("target", which)


def block_key(which: str, part: str) -> Key:
    return make_key("block", which, part)


def content(part: str) -> bytes:
    return part.encode() * 3000


def keys_of(which: str) -> list[Key]:
    return [target_key(which), *(block_key(which, part) for part in PARTS[which])]


def manifest_of(which: str, store: Store) -> Manifest | None:
    """The target's manifest when it is built and whole."""
    manifest = records.read_manifest(store, target_key(which))
    if manifest is None or not all(blobs.has(store, entry.blob) for entry in manifest.files):
        return None
    return manifest


def build(store: Store, which: str, log: Callable[[str], None]) -> None:
    """Makes what is missing of a target; tells `log` each block once its record is durable."""
    files = []
    for part in PARTS[which]:
        key = block_key(which, part)
        with locks.acquire(store, [key]):
            record = records.read(store, key)
            if record is None or not blobs.has(store, record.blob):
                record = Record(key, "block", blobs.ingest(store, [content(part)]), {"part": part})
                records.write(store, record)
                log(f"{which}/{part}")
        files.append(FileEntry(f"{part}.safetensors", record.blob))
    manifest = records.read_manifest(store, target_key(which))
    if manifest is None:
        manifest = Manifest(target_key(which), "target", NAMES[which], "2025-01-01T00:00:00Z", tuple(files))
        records.write_manifest(store, manifest)
    folder = folder_of(store, manifest)
    if not views.is_current(store, folder, manifest):
        views.materialize(store, folder, manifest)


def folder_of(store: Store, manifest: Manifest) -> Path:
    """Where a target's view lies, by its own name; an import's by its key."""
    return store.bases / manifest.key if manifest.kind == "base" else store.models / manifest.name


def prepare(root: Path) -> None:
    """The store before the run."""
    store = open_store(root)
    build(store, "old", lambda name: None)


def run(root: Path, log: Callable[[str], None]) -> None:
    """The whole run; again, it does only what is left. Raises BuildError."""
    store = open_store(root)
    with locks.build_session(store, keys_of("between") + keys_of("new")) as session:
        if manifest_of("new", store) is None:
            build(store, "between", log)
        build(store, "new", log)
        pins.pin(store, "m")
        pins.unpin(store, "m")
        prune.drop(store, {NAMES["between"]: [target_key("between")]}, mine=session)
    policy = gc.Policy(grace_s=0)
    keys = keys_of("between") + keys_of("new")
    gc.apply_gc(store, gc.plan_gc(inventory.survey(store), keys, policy, time.time_ns()))


def main() -> int:
    root, log_file = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log(name: str) -> None:
        os.pwrite(log_file, f"{name}\n".encode(), os.fstat(log_file).st_size)  # not one of the failing calls

    try:
        run(root, log)
    except BuildError as error:
        os.pwrite(2, str(error).encode(), 0) if os.isatty(2) else None
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
