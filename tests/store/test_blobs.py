"""Bytes enter the store once, durable, named by their hash; an edit is seen without reading them."""

from __future__ import annotations

import os
import random
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import StoreError
from builder.keys import Digest, digest_bytes
from builder.store import blobs, seals, tmp
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import Blob


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def edit(path: Path, offset: int = 0) -> None:
    """Flips one byte in place."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_any_chunks_are_one_blob(store: Store, chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    blob = blobs.ingest(store, chunks)
    assert blob == Blob(digest_bytes(data), len(data))
    assert blobs.read(store, blob) == data
    assert blobs.has(store, blob)
    assert not list(store.tmp.iterdir())


def test_memoryviews_of_any_format_and_shape_are_taken_as_bytes(store: Store) -> None:
    numbers = memoryview(bytes(range(64))).cast("f", (4, 4))
    blob = blobs.ingest(store, [numbers, memoryview(b""), memoryview(b"end")])
    assert blobs.read(store, blob) == bytes(range(64)) + b"end"


def test_a_blob_lies_under_its_hash_read_only(store: Store) -> None:
    blob = blobs.ingest(store, [b"abc"])
    path = blobs.path(store, blob.digest)
    assert path == store.root / "blobs" / blob.digest[:2] / blake3.blake3(b"abc").hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_same_bytes_are_stored_once(store: Store) -> None:
    first = blobs.ingest(store, [b"abc"])
    before = blobs.path(store, first.digest).stat()
    assert blobs.ingest(store, [b"a", b"bc"]) == first
    after = blobs.path(store, first.digest).stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns  # gc sees that it was used


def test_a_file_is_ingested(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(random.Random(0).randbytes(9_000_000))
    blob = blobs.ingest_file(store, source)
    assert blobs.hash_file(source) == blob
    assert blobs.read(store, blob) == source.read_bytes()


def test_an_error_of_the_source_leaves_nothing_and_is_not_the_stores(store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"abc"
        raise OSError(5, "the base's disk")

    with pytest.raises(OSError, match="the base's disk"):
        blobs.ingest(store, chunks())
    assert blobs.present(store) == {}
    assert not list(store.tmp.iterdir())


def test_present_is_what_has_says(store: Store) -> None:
    made = [blobs.ingest(store, [bytes([i]) * i]) for i in range(20)]
    assert blobs.present(store) == {blob.digest: blob.size for blob in made}
    (store.blobs / "zz").mkdir()
    (store.blobs / "00").mkdir(exist_ok=True)
    (store.blobs / "00" / "notes.txt").write_text("")
    (store.blobs / "00" / ("1" * 64)).write_text("in the wrong folder")
    (store.blobs / "00" / ("0" * 64)).symlink_to("/etc/passwd")
    assert blobs.present(store) == {blob.digest: blob.size for blob in made}
    assert not blobs.has(store, Blob(Digest("0" * 64), Path("/etc/passwd").stat().st_size))


@pytest.mark.parametrize("name", ["", "ab", "../" * 21 + "x", "A" * 64, "g" * 64, "0" * 65, "0" * 63 + "\n"])
def test_only_a_digest_is_a_path(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        blobs.path(store, Digest(name))


def test_an_edit_of_the_same_size_is_seen_by_stat(store: Store) -> None:
    blob = blobs.ingest(store, [b"abc" * 100])
    edit(blobs.path(store, blob.digest), 7)
    assert not blobs.has(store, blob)
    assert blobs.present(store) == {}
    with pytest.raises(StoreError, match="its bytes do not match its name"):
        blobs.read(store, blob)


def test_a_damaged_blob_is_replaced_by_ingesting_its_bytes(store: Store) -> None:
    blob = blobs.ingest(store, [b"abc" * 100])
    edit(blobs.path(store, blob.digest))
    assert blobs.ingest(store, [b"abc" * 100]) == blob
    assert blobs.has(store, blob)


def test_a_truncated_blob_is_not_there(store: Store) -> None:
    blob = blobs.ingest(store, [b"abc" * 100])
    path = blobs.path(store, blob.digest)
    path.chmod(0o644)
    os.truncate(path, 10)
    assert not blobs.has(store, blob)
    assert blobs.present(store) == {}


def test_a_copied_store_is_hashed_once_and_sealed_again(store: Store, tmp_path: Path) -> None:
    blob = blobs.ingest(store, [b"abc" * 100])
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = open_store(tmp_path / "copy")
    path = blobs.path(copy, blob.digest)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    assert not seals.intact(path.stat().st_mtime_ns, blob.digest)
    assert blobs.present(copy) == {blob.digest: blob.size}
    assert seals.intact(path.stat().st_mtime_ns, blob.digest)
    assert path.stat().st_mtime_ns // 10**9 == 1_700_000_000


def test_coarse_times_prove_nothing() -> None:
    assert seals.intact(1_700_000_000_000_000_000, Digest("ab" * 32))
    assert seals.intact(1_700_000_000_120_000_000, Digest("ab" * 32))
    assert not seals.intact(1_700_000_000_120_000_001, Digest("ab" * 32))


def test_threads_ingesting_the_same_and_different_bytes(store: Store) -> None:
    found: list[Blob] = []

    def work(seed: int) -> None:
        for i in range(15):
            found.append(blobs.ingest(store, [b"shared", bytes([i])]))
            found.append(blobs.ingest(store, [bytes([seed, i])]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert len(blobs.present(store)) == 15 + 60
    assert all(blobs.has(store, blob) for blob in found)


def test_vanished_folders_come_back(store: Store) -> None:
    shutil.rmtree(store.tmp)
    blob = blobs.ingest(store, [b"abc"])
    shutil.rmtree(store.blobs)
    shutil.rmtree(store.locks)
    assert not blobs.has(store, blob)
    assert blobs.ingest(store, [b"abc"]) == blob
    assert blobs.has(store, blob)


def test_sweep_takes_what_nobody_holds(store: Store) -> None:
    left, folder_left = "1" * 32, "2" * 32
    (store.tmp / left).write_bytes(b"x" * 1000)
    (store.tmp / folder_left).mkdir()
    (store.tmp / folder_left / "file").write_bytes(b"x" * 500)
    outside = store.root.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    (store.tmp / folder_left / "link").symlink_to(outside)
    with tmp.new_file(store) as staged, tmp.new_folder(store) as folder:
        os.write(staged.fd, b"abc")
        (folder / "file").write_text("abc")
        assert {p.name for p in tmp.orphans(store)} == {left, folder_left}
        assert tmp.sweep(store) >= 1500
        assert staged.path.exists()
        assert (folder / "file").exists()
    assert not list(store.tmp.iterdir())
    assert (outside / "precious").exists()
