"""Real small file systems on loop devices: full ones, read-only ones, ones with reflinks, and ones without
links, clones, permissions and case.

exFAT is mounted by the kernel, else by exfat-fuse. vfat needs the kernel's driver.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import StoreError, StoreFull
from builder.keys import digest_bytes, make_key
from builder.project import preflight
from builder.store import blobs, locks, records, views
from builder.store.care import drop as prune
from builder.store.care import gc, inventory, verify
from builder.store.disk import capability
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.store.types import FileEntry, Manifest, Record
from tests.conftest import Sandbox, make_sandbox
from tests.store_scenario import folder_of
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

MIB = 1 << 20
KINDS = {
    "ext4": (48, ["mkfs.ext4", "-q", "-m", "0"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "btrfs": (160, ["mkfs.btrfs", "-q"]),
}
PLAIN = {  # no links, no clones, no permissions, times of 10 ms or 2 s, names without case
    "vfat": (64, ["mkfs.vfat"]),
    "exfat": (64, ["mkfs.exfat"]),
}
HELPERS = {"exfat": "mount.exfat-fuse"}


@pytest.fixture(params=KINDS | PLAIN)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted, empty file system of each kind that this machine can make."""
    yield from mounted(request.param, tmp_path)


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted, empty file system that knows only names and bytes."""
    yield from mounted(request.param, tmp_path)


def mounted(kind: str, folder: Path) -> Iterator[Path]:
    size, make = (KINDS | PLAIN)[kind]
    image, mount = folder / "image", folder / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size * MIB)
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    subprocess.run([*make, str(image)], check=True, stdout=subprocess.DEVNULL)
    device = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True)
    if device.returncode != 0:
        pytest.skip(f"no loop device: {device.stderr.strip()}")
    try:
        problem = attach(kind, device.stdout.strip(), mount)
        if problem:
            pytest.skip(f"cannot mount {kind} here: {problem}")
        yield mount
        subprocess.run(["umount", "-l", str(mount)], check=True)
    finally:
        subprocess.run(["losetup", "-d", device.stdout.strip()], check=True)


def attach(kind: str, device: str, mount: Path) -> str:
    """Mounts by the kernel's driver, else by one in user space; says why not."""
    done = subprocess.run(["mount", "-t", kind, device, str(mount)], capture_output=True, text=True)
    if done.returncode != 0 and shutil.which(HELPERS.get(kind, "")):
        done = subprocess.run([HELPERS[kind], device, str(mount)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[0]


def build(store: Store, name: str, size: int) -> Manifest:
    files = []
    for part in ("a", "b"):
        blob = blobs.ingest(store, [random.Random(f"{name}/{part}").randbytes(size)])
        records.write(store, Record(make_key("block", name, part), "block", blob))
        files.append(FileEntry(part, blob))
    manifest = Manifest(make_key("target", name), "target", name, "2025-01-01T00:00:00Z", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, folder_of(store, manifest), manifest)
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
    assert prune.drop(store, {target.name: [target.key]}).blobs == 2
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


def test_a_view_costs_no_space_where_it_can(disk: Path) -> None:
    store = open_store(disk / "store")
    target = build(store, "t", 4 * MIB)
    views.remove(store, store.models / "t")
    os.sync()
    before = free(disk)
    views.materialize(store, store.models / "t", target)
    os.sync()
    if not capability.links(store.tmp):
        assert 8 * MIB <= before - free(disk) < 9 * MIB
        return
    assert before - free(disk) < MIB // 2
    shared = (store.models / "t" / "a").samefile(blobs.path(store, target.files[0].blob.digest))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(disk)], capture_output=True, text=True, check=True)
    assert shared == (kind.stdout.strip() == "ext2/ext3")  # reflinks where there are any


# -- only names and bytes ------------------------------------------------------------------------------------


@pytest.fixture
def project(plain: Path, tmp_path: Path) -> Sandbox:
    """A tiny real project whose store lies on such a disk."""
    box = make_sandbox(tmp_path / "project", f'[store]\npath = "{plain}/store"\n\n{DECLARATION}')
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    return box


def digests(models: Path, target: str) -> dict[str, str]:
    """Name -> BLAKE3 of each file of a built view, but for its manifest and card."""
    files = (models / target).iterdir()
    return {f.name: digest_bytes(f.read_bytes()) for f in files if f.suffix not in (".toml", ".md")}


def test_what_such_a_disk_can_do_is_found_out(plain: Path) -> None:
    assert not capability.links(plain)
    assert not capability.keeps_modes(plain)
    assert capability.ignores_case(plain)
    assert list(plain.iterdir()) == []


def test_it_builds_loads_verifies_and_does_nothing_again(
    project: Sandbox, plain: Path, tmp_path: Path
) -> None:
    assert built(project) == {"m_4bit": BLOCKS, "m_5bit": BLOCKS - 1}
    assert "the views are copies" in project.doit("plan", "m_f16").out
    assert built(project) == {}
    verified = project.doit("verify")
    assert verified.code == 0
    assert re.fullmatch(r"\d+ files, [\d.]+ MB rehashed, 0 damaged\n", verified.text), verified.text

    elsewhere = make_sandbox(tmp_path / "elsewhere", DECLARATION)
    for name in ("base", "adapter"):
        (elsewhere.root / name).symlink_to(project.root / name)
    assert built(elsewhere) == {"m_4bit": BLOCKS, "m_5bit": BLOCKS - 1}
    for target in ("m_4bit", "m_5bit"):
        assert digests(project.models, target) == digests(elsewhere.models, target)

    from mlx_lm.utils import load_model

    model, _ = load_model(project.models / "m_4bit")
    assert len(model.layers) == 4


def test_it_cleans_and_collects(project: Sandbox, plain: Path) -> None:
    assert project.doit("model:m_f16").code == 0
    assert built(project) == {"m_4bit": BLOCKS, "m_5bit": BLOCKS - 1}
    assert (project.models / "m_f16").is_dir()
    assert "dropped m_f16" in project.doit("clean:f16").err
    assert not (project.models / "m_f16").exists()
    project.edit("bits = 4\ngroup_size = 64", "bits = 4\ngroup_size = 32")
    assert built(project) == {"m_4bit": BLOCKS - 1}
    before = len(list((plain / "store/blobs").glob("*/*")))
    collected = project.doit("gc", "--grace", "0", "--keep-days", "0")
    assert collected.code == 0, collected.text
    assert len(list((plain / "store/blobs").glob("*/*"))) < before
    assert built(project) == {}
    assert project.doit("verify").code == 0
    assert list((plain / "store/tmp").iterdir()) == []


def test_a_killed_build_resumes_there(project: Sandbox, plain: Path) -> None:
    make_base(project.root / "base", layers=40)
    actions = plain / "store/actions"
    process = subprocess.Popen(
        [sys.executable, "-m", "doit"],
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while len(list(actions.glob("*/*"))) < 15 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = set(actions.glob("*/*"))
    assert len(finished) >= 15
    assert not project.models.exists()
    made = built(project)
    assert (
        0 < sum(made.values()) <= 2 * 42 - 1 - (len(finished) - 3)
    )  # structure and two configs are no blocks
    assert built(project) == {}
    assert project.doit("verify").code == 0
    assert list((plain / "store/tmp").iterdir()) == []


def test_the_preflight_counts_the_copies(project: Sandbox, plain: Path) -> None:
    """Both models fit on the disk, but not beside their views."""
    assert project.doit("model:m_4bit").code == 0
    store = open_store(plain / "store")
    size = sum(file.stat().st_size for file in (project.models / "m_4bit").iterdir())
    fill(store)
    ballast = store.root / "ballast"
    os.truncate(ballast, ballast.stat().st_size - preflight.SLACK - 2 * size)
    refused = project.doit("model:m_5bit")
    assert refused.code != 0
    assert "[NoRoom]" in refused.text
    os.truncate(ballast, ballast.stat().st_size - 2 * size)
    assert project.doit("model:m_5bit").code == 0


def test_names_that_differ_by_case_are_refused_there(project: Sandbox, plain: Path) -> None:
    shutil.copy(project.root / "base/tokenizer.json", project.root / "base/Tokenizer.json")
    refused = project.doit()
    assert refused.code != 0
    assert '"Tokenizer.json" and "tokenizer.json" differ only by case' in refused.text
    (project.root / "base/Tokenizer.json").unlink()
    assert built(project) == {"m_4bit": BLOCKS, "m_5bit": BLOCKS - 1}


def built(box: Sandbox) -> dict[str, int]:
    """target -> blocks made by `doit`."""
    ran = box.doit()
    assert ran.code == 0, ran.text
    row = re.compile(r"^(\S+_\S+) +[\d.]+ [kM]B +[\d.]+ +(\d+) +(\d+) +[\d.]+ *$", re.MULTILINE)
    return {name: int(made) for name, made, _ in row.findall(ran.out)}
