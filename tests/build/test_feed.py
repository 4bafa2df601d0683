"""What a pass reads arrives whole, once, and no faster than memory allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

from builder.build import feed as feeding
from builder.build.feed import Feed, Job
from builder.build.filling import Filler
from builder.engine.pool import Pool
from builder.errors import SourceInvalid
from builder.store.disk.direct import ALIGNED
from builder.weights import pieces
from builder.weights.pieces import Piece, Room, Rows

PIECE = 1 << 21  # of one read
SIZE = 3 * PIECE // 2  # of a block: pieces of the disk and of blocks do not meet
ROW = SIZE // 2 // 64  # bytes


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(feeding, "PIECE", PIECE)
    data = np.random.default_rng(0).integers(0, 256, 4 * SIZE + ALIGNED + 123, np.uint8)
    (tmp_path / "model.safetensors").write_bytes(data.tobytes())
    return tmp_path / "model.safetensors"


def blocks(file: Path, begin: int = 11) -> dict[str, Room]:
    """Four blocks of two parameters: the first halves in order, then the second halves."""
    return {
        str(n): Room(
            {"a": SIZE // 2, "b": SIZE // 2},
            (
                Piece(file, begin + n * SIZE // 2, begin + (n + 1) * SIZE // 2, str(n), "a", 0),
                Piece(file, begin + (4 + n) * SIZE // 2, begin + (5 + n) * SIZE // 2, str(n), "b", 0),
            ),
        )
        for n in range(4)
    }


def expected(file: Path, piece: Piece) -> bytes:
    return file.read_bytes()[piece.start : piece.end]


@pytest.mark.parametrize("begin", [11, 16, ALIGNED - 8, ALIGNED])  # nothing may begin at 11
@pytest.mark.parametrize("direct", [True, False])
def test_every_block_and_the_digest(file: Path, direct: bool, begin: int) -> None:
    rooms, told = blocks(file, begin), list[str]()
    everything = [piece for room in rooms.values() for piece in room.pieces]
    span = pieces.whole(file, file.stat().st_size, everything)
    with Feed([Job(span, told.append)], rooms, rooms, "base.b", direct=direct) as feed:
        for name in pieces.open_blocks([span]):
            arrays = feed.take(name)
            for piece in rooms[name].pieces:
                assert arrays[piece.parameter].tobytes() == expected(file, piece)
                straight = (arrays[piece.parameter].ctypes.data - piece.start) % ALIGNED == 0
                assert straight == (begin != 11)
            feed.done(name)
            del arrays
        feed.finish()
    assert told == [blake3.blake3(file.read_bytes()).hexdigest()]


@pytest.mark.parametrize("direct", [True, False])
def test_memory_holds_one_block_and_the_next(file: Path, direct: bool) -> None:
    rooms = blocks(file)
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    with Feed(jobs, rooms, {"0"}, "base.b", direct=direct) as feed:
        feed.take("0")
        _settle()
        assert set(feed.in_memory) == {"0", "1"}  # read beside it, and nothing more
        feed.done("0")
        feed.take("1")
        _settle()
        assert set(feed.in_memory) == {"1"}  # no room is allowed beside this one
        feed.done("1")
        feed.done("2")  # somebody else has made it
        assert feed.take("3")["a"].tobytes() == expected(file, rooms["3"].pieces[0])


@pytest.mark.parametrize("begin", [11, 16])
def test_memory_holds_no_more_where_hashing_is_slow(
    file: Path, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that asks the disk is ahead of the other one, but not by a block."""
    fill, most = Filler.fill, list[int]()

    def slowly(self: Filler, *arguments: Any) -> Any:
        time.sleep(0.02)
        most.append(len(self._arrays.in_memory))
        return fill(self, *arguments)

    monkeypatch.setattr(Filler, "fill", slowly)
    rooms = blocks(file, begin)
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    with Feed(jobs, rooms, rooms, "base.b") as feed:
        for name, room in rooms.items():
            arrays = feed.take(name)
            assert arrays["b"].tobytes() == expected(file, room.pieces[1])
            del arrays
            feed.done(name)
    assert max(most) <= 2  # one that is taken, and the next one


def test_many_blocks_in_one_read(file: Path) -> None:
    """Each waits for its turn, although all of their bytes are there."""
    rooms = {
        str(n): Room({"a": 1000}, (Piece(file, 8 + 1000 * n, 8 + 1000 * (n + 1), str(n), "a", 0),))
        for n in range(50)
    }
    span = pieces.whole(file, file.stat().st_size, [p for room in rooms.values() for p in room.pieces])
    with Feed([Job(span)], rooms, rooms, "base.b") as feed:
        for name, room in rooms.items():
            assert feed.take(name)["a"].tobytes() == expected(file, room.pieces[0])
            assert len(feed.in_memory) <= 2
            feed.done(name)


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


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_rows_arrive_whole_and_once(file: Path, direct: bool, hashed: bool) -> None:
    """Also where the pieces of the disk cut them, and where a block comes in between another one's halves."""
    rooms = blocks(file, begin=16)
    found = {(name, parameter): bytearray(SIZE // 2) for name in rooms for parameter in "ab"}
    told, threads = list[str](), set[int]()

    def use(some: Sequence[Rows]) -> None:
        threads.add(threading.get_ident())
        for rows in some:
            assert rows.at % ROW == len(rows.data) % ROW == 0
            found[rows.block, rows.parameter][rows.at : rows.at + len(rows.data)] = rows.data
            rows.data[:] = bytes(len(rows.data))  # who gets them may do this

    everything = [piece for room in rooms.values() for piece in room.pieces]
    span = pieces.whole(file, file.stat().st_size, everything)
    with Feed(
        [Job(span, told.append if hashed else None)],
        rooms,
        rooms,
        "base.b",
        direct=direct,
        rows={"a": ROW, "b": ROW},
        use=use,
    ) as feed:
        for name in pieces.open_blocks([span]):
            assert feed.take(name) == {}
            assert set(feed.parameters(name)) == {"a", "b"}
            for piece in rooms[name].pieces:
                assert bytes(found[name, piece.parameter]) == expected(file, piece)
            feed.done(name)
        feed.finish()
    assert threads == {threading.get_ident()}
    assert told == ([blake3.blake3(file.read_bytes()).hexdigest()] if hashed else [])


def by_rows(rooms: Mapping[str, Room], use: Callable[[Sequence[Rows]], None]) -> Feed:
    """One block after the other, all of them row by row."""
    jobs = [Job(span) for room in rooms.values() for span in pieces.spans(room.pieces)]
    return Feed(jobs, rooms, rooms, "base.b", rows={"a": ROW, "b": ROW}, use=use)


def test_rows_of_a_block_that_nobody_wants_are_let_go(file: Path) -> None:
    rooms, used = blocks(file, begin=16), list[str]()
    with by_rows(rooms, lambda some: used.extend(r.block for r in some)) as feed:
        for name in ("0", "1", "2"):
            feed.done(name)  # somebody else has made it
        feed.take("3")
        assert set(used) == {"3"}
        feed.done("3")
        feed.finish()


def test_rows_behind_a_block_wait_for_the_next_one(file: Path) -> None:
    """Else memory would hold what is made of a third block."""
    rooms, used = blocks(file, begin=16), set[str]()
    with by_rows(rooms, lambda some: used.update(r.block for r in some)) as feed:
        for count, name in enumerate(rooms, 1):
            _settle()
            feed.take(name)
            assert used == set(list(rooms)[:count])
            feed.done(name)


def test_what_the_user_of_rows_raises_comes_out(file: Path) -> None:
    rooms = blocks(file, begin=16)

    def use(some: Sequence[Rows]) -> None:
        raise ArithmeticError("NaN")

    before = threading.active_count()
    with (
        pytest.raises(ArithmeticError, match="NaN"),
        by_rows(rooms, use) as feed,
    ):
        feed.take("0")
    assert threading.active_count() == before


def test_a_file_that_became_shorter_gives_no_part_of_a_row(file: Path) -> None:
    rooms, got = blocks(file, begin=16), list[int]()
    file.write_bytes(file.read_bytes()[: SIZE // 4 + 17])
    with (
        by_rows(rooms, lambda some: got.extend(len(r.data) for r in some)) as feed,
        pytest.raises(SourceInvalid, match="became shorter while it was read"),
    ):
        feed.take("0")
    assert all(size % ROW == 0 for size in got)
