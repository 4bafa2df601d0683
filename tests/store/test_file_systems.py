"""Real small file systems on loop devices: full ones, read-only ones, and ones with reflinks."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import StoreError, StoreFull
from builder.keys import make_key
from builder.store import blobs, locks, records, views
from builder.store.care import drop as prune
from builder.store.care import gc, inventory, verify
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.store.types import FileEntry, Manifest, Record

MIB = 1 << 20
KINDS = {
    "ext4": (48, ["mkfs.ext4", "-q", "-m", "0"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "btrfs": (160, ["mkfs.btrfs", "-q"]),
}


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted, empty file system of each kind that this machine can make."""
    size, make = KINDS[request.param]
    image, mount = tmp_path / "image", tmp_path / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size * MIB)
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run([*make, str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def build(store: Store, name: str, size: int) -> Manifest:
    files = []
    for part in ("a", "b"):
        blob = blobs.ingest(store, [random.Random(f"{name}/{part}").randbytes(size)])
        records.write(store, Record(make_key("block", name, part), "block", blob))
        files.append(FileEntry(part, blob))
    manifest = Manifest(make_key("target", name), "target", name, "2025-01-01T00:00:00Z", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, views.folder_of(store, manifest), manifest)
    return manifest


def fill(store: Store) -> None:
    """Takes every byte, as other programs do: big pieces, then whatever small ones still fit."""
    fd = os.open(store.root / "ballast", os.O_WRONLY | os.O_CREAT)
    for size in (MIB, 4096, 512, 1):
        try:
            while True:
                os.write(fd, b"x" * size)
                if size < MIB:
                    os.fsync(fd)
        except OSError:
            continue
    os.close(fd)


def free(path: Path) -> int:
    return shutil.disk_usage(path).free


def test_a_full_disk_is_refused_loses_nothing_and_gc_needs_no_room(disk: Path) -> None:
    store = open_store(disk / "store")
    old, new = build(store, "old", 2 * MIB), build(store, "new", 2 * MIB)
    with pytest.raises(StoreFull, match="No space left on device"):
        blobs.ingest(store, (random.Random(n).randbytes(MIB) for n in range(1000)))
    assert not list(store.tmp.iterdir())
    fill(store)
    with pytest.raises(StoreFull):
        build(store, "more", 2 * MIB)
    StatCache(store).put("k", "k", b"value")
    assert verify.verify(store).is_clean
    before = free(disk)
    plan = gc.plan_gc(inventory.survey(store), [new.key], gc.Policy(grace_s=0), time.time_ns())
    assert [m.name for m in plan.manifests] == ["old"]
    gc.apply_gc(store, plan)
    os.sync()
    subprocess.run(["sync", "-f", str(disk)], check=True)
    assert free(disk) - before > 3 * MIB or disk_is_lazy(disk)
    assert records.read_manifest(store, old.key) is None
    assert views.is_current(store, store.models / "new", new)
    assert verify.verify(store).is_clean
    (store.root / "ballast").unlink()
    build(store, "more", 2 * MIB)


def disk_is_lazy(disk: Path) -> bool:
    """btrfs gives space back with its next transactions."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(disk)], capture_output=True, text=True, check=True)
    return kind.stdout.strip() == "btrfs"


def test_pruning_needs_no_room(disk: Path) -> None:
    store = open_store(disk / "store")
    target = build(store, "m_f16", 2 * MIB)
    fill(store)
    assert prune.drop(store, [target.key]).blobs == 2
    assert not (store.models / "m_f16").exists()
    assert blobs.present(store) == {}


def test_a_read_only_disk_can_be_read_and_says_so(disk: Path) -> None:
    store = open_store(disk / "store")
    target = build(store, "t", MIB)
    cache = StatCache(store)
    cache.put("k", "k", b"value")
    cache.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    store = open_store(disk / "store")
    assert verify.verify(store).findings == ()
    assert views.is_current(store, store.models / "t", target)
    assert inventory.survey(store).manifests.keys() == {target.key}
    cache = StatCache(store)
    cache.put("k", "other", b"")
    assert cache.get("k", "k") in (b"value", None)
    for attempt in (
        lambda: blobs.ingest(store, [b"x"]),
        lambda: views.remove(store, store.models / "t"),
        lambda: locks.build_session(store, []).__enter__(),
    ):
        with pytest.raises(StoreError, match="Read-only file system"):
            attempt()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_a_view_costs_no_space(disk: Path) -> None:
    store = open_store(disk / "store")
    target = build(store, "t", 4 * MIB)
    views.remove(store, store.models / "t")
    os.sync()
    before = free(disk)
    views.materialize(store, store.models / "t", target)
    os.sync()
    assert before - free(disk) < MIB // 2
    shared = (store.models / "t" / "a").samefile(blobs.path(store, target.files[0].blob.digest))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(disk)], capture_output=True, text=True, check=True)
    assert shared == (kind.stdout.strip() == "ext2/ext3")  # reflinks where there are any
