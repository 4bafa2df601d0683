"""Which flush is asked for, in which order, and what happens where a disk knows fewer of them."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from builder.keys import make_key
from builder.store import blobs, records
from builder.store.disk import durable
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import FileEntry, Manifest, Record
from tests.drive import Drive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts through /proc")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def make_action(store: Store, text: bytes) -> Record:
    record = Record(make_key("block", text.decode()), "block", blobs.ingest(store, [text]))
    records.write(store, record)
    return record


def with_folders(store: Store, text: bytes) -> Record:
    """The record of an action; its folders and the one of manifests are there, it and its blob are not."""
    record = make_action(store, text)
    records.path(store, record.key).unlink()
    blobs.path(store, record.blob.digest).unlink()
    store.targets.mkdir(exist_ok=True)
    return record


def test_the_blob_comes_before_its_record_and_a_full_flush_before_the_manifest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = with_folders(store, b"one")
    drive = Drive(store.root)
    drive.install(monkeypatch)
    record = make_action(store, b"one")
    assert record == expected
    key, digest = record.key, record.blob.digest
    manifest = Manifest(make_key("t"), "target", "t", "2025-01-01T00:00:00Z", (FileEntry("a", record.blob),))
    records.write_manifest(store, manifest)
    assert [(what, "tmp" if path.startswith("tmp/") else path) for what, path in drive.log] == [
        ("barrier", "tmp"),
        ("rename", f"blobs/{digest[:2]}/{digest}"),
        ("barrier", f"blobs/{digest[:2]}"),
        ("barrier", "tmp"),
        ("rename", f"actions/{key[:2]}/{key}"),
        ("barrier", f"actions/{key[:2]}"),
        ("full", "tmp"),
        ("rename", f"targets/{manifest.key}.toml"),
        ("full", "targets"),
    ]


@pytest.mark.parametrize(
    ("barrier", "full", "order_only", "used"),
    [
        (True, True, True, "barrier"),
        (True, True, False, "full"),
        (False, True, True, "full"),
        (False, True, False, "full"),
        (False, False, True, "fsync"),
        (False, False, False, "fsync"),
        (True, False, False, "fsync"),
    ],
)
def test_a_disk_that_knows_no_barrier_is_flushed_in_full_else_by_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: bool, full: bool, order_only: bool, used: str
) -> None:
    drive = Drive(tmp_path, barrier=barrier, full=full)
    drive.install(monkeypatch)
    with (tmp_path / "file").open("wb") as file:
        durable.sync_file(file.fileno(), order_only=order_only)
    durable.sync_folder(tmp_path, order_only=order_only)
    assert drive.log == [(used, "file"), (used, ".")]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("order_only", [True, False])
def test_a_disk_that_fails_is_not_asked_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, order_only: bool
) -> None:
    drive = Drive(tmp_path)
    drive.install(monkeypatch)

    def fail(fd: int, command: int, *rest: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as caught:
        durable.sync_file(file.fileno(), order_only=order_only)
    assert caught.value.errno == code
    assert drive.log == []


def test_on_linux_order_only_is_an_fsync(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with_folders(store, b"one")
    drive = Drive(store.root)
    drive.install(monkeypatch)
    monkeypatch.delattr(fcntl, "F_FULLFSYNC")
    make_action(store, b"one")
    assert [what for what, _ in drive.log] == ["fsync", "rename", "fsync"] * 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def test_permission_bits_are_a_courtesy(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    record = make_action(store, b"one")
    assert blobs.read(store, record.blob) == b"one"
