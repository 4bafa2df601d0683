"""Large files go past the page cache, up to what no sector divides, through buffers that are used again."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from builder.store.disk import direct, durable
from builder.store.disk.buffers import Shelf
from builder.store.disk.direct import BUFFER, FLAG, DirectWriter

SIZES = [0, 1, 4096, 200_001, 300_000, 1 << 19, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER + (1 << 19) + 5]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bool]]]:
    """How many bytes each write had, and whether it went past the page cache."""
    import fcntl

    whole, told = durable.write_all, list[tuple[int, bool]]()

    def write(fd: int, data: memoryview, at: int | None = None) -> None:
        told.append((len(data), bool(FLAG and fcntl.fcntl(fd, fcntl.F_GETFL) & FLAG)))
        whole(fd, data, at)

    monkeypatch.setattr(durable, "write_all", write)
    yield told


def write(path: Path, data: bytes | memoryview, piece: int, *, lasting: bool = False) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        with closing(DirectWriter(fd, lasting=lasting)) as writer:
            for start in range(0, len(data), piece):
                writer.write(memoryview(data)[start : start + piece])
            writer.finish()
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_of_a_file(tmp_path: Path, size: int, written: list[tuple[int, bool]]) -> None:
    data = os.urandom(size)
    write(tmp_path / "file", data, 1_234_567)
    assert (tmp_path / "file").read_bytes() == data
    past = sum(count for count, is_direct in written if is_direct)
    assert past in (0, size // BUFFER * BUFFER, size // 4096 * 4096)
    if any(is_direct for _, is_direct in written) and size % BUFFER >= 1 << 18:
        assert size - past < 4096


@pytest.mark.parametrize("before", [0, 8, 4096, 4099])
@pytest.mark.parametrize("away", [0, 1, 4000])
def test_what_lasts_is_written_from_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, away: int
) -> None:
    """Where its place in memory fits its place in the file. Else it is copied, and the bytes are the same."""
    copy, copied = direct._copy, list[int]()

    def counted(buffer: mmap.mmap, start: int, data: memoryview) -> None:
        copied.append(len(data))
        copy(buffer, start, data)

    monkeypatch.setattr(direct, "_copy", counted)
    size = 2 * BUFFER + 77_777
    memory = np.frombuffer(os.urandom(size + 2 * 4096), np.uint8)
    begin = (before + away - memory.ctypes.data) % 4096
    large, head = memoryview(memory)[begin : begin + size], os.urandom(before)
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    with closing(DirectWriter(fd, lasting=True)) as writer:
        writer.write(memoryview(head))
        writer.write(large)
        writer.write(memoryview(b"end"))
        writer.finish()
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == head + bytes(large) + b"end"
    if FLAG and away:
        assert sum(copied) == before + size + 3
    else:
        assert sum(copied) <= before + 2 * 4096 + 3


def test_what_may_change_is_copied(tmp_path: Path) -> None:
    buffer = bytearray(2 * BUFFER)
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    with closing(DirectWriter(fd)) as writer:
        for value in range(8):
            buffer[:] = bytes([value]) * len(buffer)
            writer.write(memoryview(buffer))
        writer.finish()
    os.close(fd)
    found = np.fromfile(tmp_path / "file", np.uint8).reshape(8, -1)
    assert (found == np.arange(8, dtype=np.uint8)[:, None]).all()


@pytest.mark.parametrize("lasting", [False, True])
def test_a_write_on_its_way_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    """Its error arrives, and nothing is written any more once the writer is closed."""
    whole, begun = durable.write_all, list[int]()

    def full(fd: int, part: memoryview, at: int | None = None) -> None:
        begun.append(fd)
        if len(begun) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(fd, part, at)

    monkeypatch.setattr(durable, "write_all", full)
    memory = np.zeros(20 * BUFFER + 4096, np.uint8)
    begin = -memory.ctypes.data % 4096
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", memoryview(memory)[begin : begin + 20 * BUFFER], BUFFER, lasting=lasting)
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count


def test_a_file_system_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = durable.write_all
    monkeypatch.setattr(direct, "switch", lambda fd, wanted: True)
    refused = list[int]()

    def write_all(fd: int, part: memoryview, at: int | None = None) -> None:
        if not refused:
            refused.append(len(part))
            raise OSError(errno.EINVAL, "Invalid argument")
        whole(fd, part, at)

    monkeypatch.setattr(durable, "write_all", write_all)
    data = os.urandom(BUFFER + 500_000)
    write(tmp_path / "file", data, BUFFER)
    assert refused == [BUFFER]
    assert (tmp_path / "file").read_bytes() == data


def test_buffers_are_used_again() -> None:
    shelf = Shelf(4096, kept=1)
    first, second = shelf.take(), shelf.take()
    assert first is not second and len(first) == 4096
    shelf.put(first)
    shelf.put(second)  # one is kept
    assert shelf.take() is first
    assert shelf.take() not in (first, second)
