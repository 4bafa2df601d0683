"""Large files go past the page cache, up to what no sector divides, through buffers that are used again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

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

    def write(fd: int, data: memoryview) -> None:
        told.append((len(data), bool(FLAG and fcntl.fcntl(fd, fcntl.F_GETFL) & FLAG)))
        whole(fd, data)

    monkeypatch.setattr(durable, "write_all", write)
    yield told


def write(path: Path, data: bytes, piece: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        with closing(DirectWriter(fd)) as writer:
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


def test_a_file_system_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = durable.write_all
    monkeypatch.setattr(direct, "switch", lambda fd, wanted: True)
    refused = list[int]()

    def write_all(fd: int, part: memoryview) -> None:
        if not refused:
            refused.append(len(part))
            raise OSError(errno.EINVAL, "Invalid argument")
        whole(fd, part)

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
