"""What a pass reads arrives whole, once, and no faster than memory allows."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import blake3
import numpy as np
import pytest

from builder.build.feed import Feed, Job
from builder.engine.pool import Pool
from builder.errors import SourceInvalid
from builder.store.disk.uncached import PIECE
from builder.weights import pieces
from builder.weights.pieces import Piece, Room

SIZE = 3 * PIECE // 2  # of a block: pieces of the disk and of blocks do not meet


@pytest.fixture
def file(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 256, 4 * SIZE + 123, np.uint8)
    (tmp_path / "model.safetensors").write_bytes(data.tobytes())
    return tmp_path / "model.safetensors"


def blocks(file: Path) -> dict[str, Room]:
    """Four blocks of two parameters: the first halves in order, then the second halves."""
    return {
        str(n): Room(
            {"a": SIZE // 2, "b": SIZE // 2},
            (
                Piece(file, 11 + n * SIZE // 2, 11 + (n + 1) * SIZE // 2, str(n), "a", 0),
                Piece(file, 11 + (4 + n) * SIZE // 2, 11 + (5 + n) * SIZE // 2, str(n), "b", 0),
            ),
        )
        for n in range(4)
    }


def expected(file: Path, piece: Piece) -> bytes:
    return file.read_bytes()[piece.start : piece.end]


@pytest.mark.parametrize("direct", [True, False])
def test_every_block_and_the_digest(file: Path, direct: bool) -> None:
    rooms, told = blocks(file), list[str]()
    everything = [piece for room in rooms.values() for piece in room.pieces]
    span = pieces.whole(file, file.stat().st_size, everything)
    with Feed([Job(span, told.append)], rooms, rooms, "base.b", direct=direct) as feed:
        for name in pieces.completion([span]):
            arrays = feed.take(name)
            for piece in rooms[name].pieces:
                assert arrays[piece.parameter].tobytes() == expected(file, piece)
            feed.done(name)
        feed.finish()
    assert told == [blake3.blake3(file.read_bytes()).hexdigest()]


@pytest.mark.parametrize("direct", [True, False])
def test_memory_holds_one_block_and_the_next(file: Path, direct: bool) -> None:
    rooms = blocks(file)
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    with Feed(jobs, rooms, {"0"}, "base.b", direct=direct) as feed:
        feed.take("0")
        _settle()
        assert set(feed._open) == {"0", "1"}  # read beside it, and nothing more
        feed.done("0")
        feed.take("1")
        _settle()
        assert set(feed._open) == {"1"}  # no room is allowed beside this one
        feed.done("1")
        feed.done("2")  # somebody else has made it
        assert feed.take("3")["a"].tobytes() == expected(file, rooms["3"].pieces[0])


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_is_too_short_or_gone(file: Path, direct: bool) -> None:
    rooms = blocks(file)
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    file.write_bytes(file.read_bytes()[: SIZE // 4])
    with (
        Feed(jobs, rooms, rooms, "base.b", direct=direct) as feed,
        pytest.raises(SourceInvalid, match="became shorter while it was read"),
    ):
        feed.take("0")
    file.unlink()
    with (
        Feed(jobs, rooms, rooms, "base.b", direct=direct) as feed,
        pytest.raises(SourceInvalid, match="cannot be read"),
    ):
        feed.take("0")


@pytest.mark.parametrize("direct", [True, False])
def test_a_feed_that_nobody_takes_from_ends(file: Path, direct: bool) -> None:
    rooms = blocks(file)
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    before = threading.active_count()
    with Feed(jobs, rooms, rooms, "base.b", direct=direct):
        _settle()
    assert threading.active_count() == before


def test_an_array_is_given_out_again_when_nobody_holds_a_view_of_it() -> None:
    pool = Pool()
    first = pool.empty((2, 1 << 20), np.uint16)
    place = first.ctypes.data
    held = memoryview(np.ascontiguousarray(first[1]).data).cast("B")
    del first
    assert pool.empty(1 << 22, np.uint8).ctypes.data != place
    del held
    assert pool.empty(1 << 22, np.uint8).ctypes.data == place


def _settle() -> None:
    """Until the threads have nothing more to do."""
    time.sleep(0.3)
