"""The first build of a base reads it once, and leaves what a build of a fingerprinted base leaves."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from builder.build import feed, first_pass, ledger, one_pass
from builder.build.prepare import prepare_base
from builder.console.events import BlockDone, Emit, Event, Note
from builder.engine import stream as streams
from builder.engine.kernels import cpu as kernels
from builder.errors import BuildError, SourceInvalid
from builder.plan.types import Action, TargetPlan
from builder.project import peaks
from builder.project.forecast import forecast
from builder.project.project import Project
from builder.release.delivery import deliver
from builder.sources import unread
from builder.store import blobs, records, statcache
from builder.store.care import verify
from builder.store.disk import uncached
from builder.store.disk.direct import ALIGNED
from builder.store.types import Blob
from builder.weights.pieces import Rows
from tests.tiny import make_adapter, make_base
from tests.worlds import files_of, quiet

SOON = 20_000_000  # nanoseconds
SMALL = 40_000  # bytes of a file that is hashed at once: the shards of the base are larger
TARGETS = {"m_4bit", "m_8bit", "m_f16"}
QUANTIZED = {"m_4bit", "m_8bit"}
DECLARATION = """\
[base.b]
path = "base"

[adapter.a]
base = "b"
path = "adapter"

[variant.4bit]
bits = 4
group_size = 32

[variant.8bit]
bits = 8
group_size = 32

[variant.f16]

[model.m]
adapter = "a"
variants = ["4bit", "8bit", "f16"]
"""


class Killed(BaseException):
    """As kill -9: nothing that the program does afterwards counts."""


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.sources.catalog.HASH_AT_ONCE", SMALL)
    _old_after(monkeypatch, SOON)


def _old_after(monkeypatch: pytest.MonkeyPatch, nanoseconds: int) -> None:
    """How old a file must be for its stat to tell that it did not change."""
    for module in (statcache, unread):
        monkeypatch.setattr(module, "RACY_NS", nanoseconds)


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A project whose files are old enough for a stat to tell of changes."""
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter")
    (tmp_path / "artifacts.toml").write_text(DECLARATION)
    time.sleep(2 * SOON / 1e9)
    return tmp_path / "artifacts.toml"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """File name -> bytes of it that were read, by whatever hashes files or feeds a pass."""
    counts: dict[str, int] = {}
    fed = uncached.Uncached.scatter

    def count(path: Path, size: int) -> None:
        if path.parent.name == "base" and path.suffix == ".safetensors":
            counts[path.name] = counts.get(path.name, 0) + size

    class Counting(uncached.Uncached):
        def __init__(self, path: Path, *, direct: bool = True) -> None:
            super().__init__(path, direct=direct)
            self._path = path

        def scatter(self, parts: Sequence[memoryview], start: int) -> int:
            got = fed(self, parts, start)
            count(self._path, got)
            return got

    whole = blobs.hash_file

    def hashed(place: Path, on_bytes: Callable[[int], None] | None = None) -> object:
        count(place, place.stat().st_size)
        return whole(place, on_bytes)

    monkeypatch.setattr(feed, "Uncached", Counting)
    monkeypatch.setattr(blobs, "hash_file", hashed)
    return counts


def build(file: Path, emit: Emit = quiet) -> Project:
    project = Project.load(file)
    deliver(project, "m_4bit", TARGETS, (), emit)
    return project


def build_twice_read(file: Path) -> Project:
    """As before there was a first pass: the base is fingerprinted, then built."""
    project = Project.load(file)
    prepare_base(project, project.spec.bases["b"], quiet)
    deliver(project, "m_4bit", TARGETS, (), quiet)
    return project


def kept(project: Project) -> dict[str, object]:
    """Everything that the store remembers of the targets, but for the times."""
    found: dict[str, object] = {name: files_of(project, name) for name in sorted(TARGETS)}
    for key in records.record_keys(project.store):
        record = records.read(project.store, key)
        assert record is not None
        said = {k: v for k, v in record.provenance.items() if k != "made"}
        found[key] = (record.kind, record.blob, said)
    for key in records.manifest_keys(project.store):
        manifest = records.read_manifest(project.store, key)
        assert manifest is not None
        found[key] = manifest.files
    return found


def clean(file: Path) -> dict[str, object]:
    """What the same sources give in an empty store, read twice."""
    folder = file.parent / "clean"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = DECLARATION.replace('"base"', '"../base"').replace('"adapter"\n\n[v', '"../adapter"\n\n[v')
    (folder / "artifacts.toml").write_text(text)
    return kept(build_twice_read(folder / "artifacts.toml"))


def sizes(file: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (file.parent / "base").glob("*.safetensors")}


def test_one_read_gives_the_same_keys_records_and_bytes(settled: Path, read: dict[str, int]) -> None:
    (said,) = forecast(Project.load(settled), sorted(TARGETS)).passes
    project = build(settled)
    assert read == sizes(settled)  # each file once, no byte twice
    assert said.once
    assert said.make == len({a.key for plan in project.plan.resolved() for a in plan.actions})
    assert kept(project) == clean(settled)
    assert verify.verify(project.store).findings == ()
    again: list[Event] = []
    read.clear()
    plan = Project.load(settled).plan.targets["m_8bit"]
    assert isinstance(plan, TargetPlan)
    build(settled, again.append)
    assert read == {}
    assert not [event for event in again if isinstance(event, BlockDone)]


def test_files_that_were_just_written(
    tmp_path: Path, read: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stat tells nothing, so no note is used by another run; one read is enough all the same."""
    _old_after(monkeypatch, 3600 * 10**9)
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter")
    (tmp_path / "artifacts.toml").write_text(DECLARATION)
    project = build(tmp_path / "artifacts.toml")
    assert read == sizes(tmp_path / "artifacts.toml")
    assert kept(project) == clean(tmp_path / "artifacts.toml")


OFTEN, SELDOM = ("third block", "half recorded"), ("first block", "first file", "last file")
POINTS = [*OFTEN, *(pytest.param(point, marks=pytest.mark.slow) for point in SELDOM)]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_first_pass_goes_on(
    settled: Path, read: dict[str, int], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    expected = clean(settled)
    files = sorted(sizes(settled))
    read.clear()
    with monkeypatch.context() as patch:
        _kill_at(patch, point)
        with pytest.raises(Killed):
            build(settled)
    project = Project.load(settled)
    made: list[Event] = []
    told = {name: project.sources.known_digest(settled.parent / "base" / name) for name in files}
    assert told[files[0]] is not None or point.endswith("block")
    read.clear()
    project = build(settled, made.append)
    assert kept(project) == expected
    assert all(read.get(name, 0) <= size for name, size in sizes(settled).items())
    if point in ("last file", "half recorded"):
        assert read == {}
        assert not [event for event in made if isinstance(event, BlockDone)]


@pytest.mark.skipif(not kernels.available("bfloat16"), reason="no compiled kernels")
@pytest.mark.parametrize("point", ["", "third block"])
def test_a_pass_that_takes_rows_leaves_the_same_bytes(
    settled: Path, read: dict[str, int], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Also after a kill. The tiny weights are made by mlx elsewhere: kernels do not pay for them."""
    expected = clean(settled)
    read.clear()
    given: list[str] = []
    take = streams.Stream.take_rows

    def noted(stream: streams.Stream, some: Sequence[Rows]) -> None:
        given.extend(rows.parameter for rows in some)
        take(stream, some)

    monkeypatch.setattr(streams, "COMPILED_FROM", 0)
    monkeypatch.setattr(streams.Stream, "take_rows", noted)
    if point:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _kill_at(patch, point)
            deliver(Project.load(settled), "m_4bit", QUANTIZED, (), quiet)
    project = Project.load(settled)
    deliver(project, "m_4bit", QUANTIZED, (), quiet)
    assert {name for plan in project.plan.resolved() for name in plan.quantization} == {
        name.removesuffix(".weight") for name in given
    }
    assert {name: files_of(project, name) for name in QUANTIZED} == {n: expected[n] for n in QUANTIZED}
    again = 4 * ALIGNED  # a page for each cut behind a row: here only where blocks begin
    assert point or all(0 <= read[name] - size <= again for name, size in sizes(settled).items())
    assert verify.verify(project.store).findings == ()


@pytest.mark.skipif(not kernels.available("bfloat16"), reason="no compiled kernels")
def test_a_block_is_made_alone_where_memory_holds_one(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = clean(settled)
    happened: list[str] = []
    take = streams.Stream.take

    def noted(stream: streams.Stream, block: str, *arguments: Any) -> Any:
        happened.append(f"made {block}")
        return take(stream, block, *arguments)

    def all_alone(actions: Iterable[Action], *_: object) -> tuple[frozenset[str], frozenset[str]]:
        found = frozenset(action.block for action in actions)
        return found, found

    def emit(event: Event) -> None:
        if isinstance(event, BlockDone):
            happened.append(f"written {event.block}")

    monkeypatch.setattr(streams, "COMPILED_FROM", 0)
    monkeypatch.setattr(streams.Stream, "take", noted)
    monkeypatch.setattr(peaks, "at_once", all_alone)
    project = Project.load(settled)
    deliver(project, "m_4bit", QUANTIZED, (), emit)
    order = [what.removeprefix("made ") for what in happened if what.startswith("made ")]
    assert len(order) > 3
    assert happened == [f"{what} {block}" for block in order for what in ("made", "written")]
    assert {name: files_of(project, name) for name in QUANTIZED} == {n: expected[n] for n in QUANTIZED}


def _kill_at(patch: pytest.MonkeyPatch, point: str) -> None:
    count = 0

    def after(number: int, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            nonlocal count
            result = call(*arguments)
            count += 1
            if count == number:
                raise Killed
            return result

        return counted

    if point.endswith("block"):
        number = 2 if point == "first block" else 8  # three records of config.json come first
        patch.setattr(ledger.Provisional, "write", after(number + 3, ledger.Provisional.write))
    elif point == "first file":
        patch.setattr("builder.sources.catalog.Catalog.note_digest", after(1, _note_digest()))
    elif point == "last file":
        patch.setattr(first_pass, "_record", after(1, lambda *_: None))
    else:
        patch.setattr(first_pass.records, "write", after(6, records.write))


def _note_digest() -> Callable[..., object]:
    from builder.sources.catalog import Catalog

    return Catalog.note_digest


@pytest.mark.parametrize("when", ["while it is read", "between two runs"])
def test_a_base_that_is_edited(settled: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    (path, *_) = sorted((settled.parent / "base").glob("*.safetensors"))

    def edit(event: Event) -> None:
        if isinstance(event, BlockDone):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))
            os.utime(path, (1_700_000_000, 1_700_000_000 + edits.pop()))

    edits = list(range(1000))
    if when == "while it is read":
        with pytest.raises(BuildError, match="changed"):
            build(settled, edit)
        project = Project.load(settled)
        assert records.manifest_keys(project.store) == []
        assert records.record_keys(project.store) == []
    else:
        with monkeypatch.context() as patch:
            _kill_at(patch, "third block")
            with pytest.raises(Killed):
                build(settled)
        edit(BlockDone("m", "", 0, 0))
    assert kept(build(settled)) == clean(settled)


def test_a_large_base_that_mlx_changes_is_read_twice_and_says_so(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "CACHED", 1 << 60)
    monkeypatch.setattr(first_pass, "SECOND", -1)
    told: list[Event] = []
    project = build(settled, told.append)
    assert any("read twice" in event.text for event in told if isinstance(event, Note))
    assert kept(project) == clean(settled)


def test_large_files_that_do_not_hold_one_block_after_the_other(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "CACHED", 1 << 60)
    monkeypatch.setattr(peaks, "SPREAD", -1000000)
    told: list[Event] = []
    project = build(settled, told.append)
    assert any("one block after the other" in event.text for event in told if isinstance(event, Note))
    assert kept(project) == clean(settled)


@pytest.mark.parametrize("why", ["spread", "changed by mlx"])
def test_a_base_that_stays_in_the_page_cache_is_hashed_beside_the_pass(
    settled: Path, read: dict[str, int], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    _beside(monkeypatch, why)
    before = forecast(Project.load(settled), TARGETS)
    told: list[Event] = []
    project = build(settled, told.append)
    assert not any("read twice" in event.text for event in told if isinstance(event, Note))
    hashed = {path.name: path.stat().st_size for path in (settled.parent / "base").glob("*.safetensors")}
    assert hashed and all(read[name] >= size for name, size in hashed.items())
    assert all(one.once for one in before.passes)
    assert kept(project) == clean(settled)


def _beside(monkeypatch: pytest.MonkeyPatch, why: str = "spread") -> None:
    if why == "spread":
        monkeypatch.setattr(peaks, "SPREAD", -1000000)
    else:
        monkeypatch.setattr(first_pass, "SECOND", -1)


def test_the_hashing_begins_before_the_model_is_loaded(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _beside(monkeypatch)
    begun, whole = threading.Event(), blobs.hash_file

    def hash_file(place: Path, on_bytes: Callable[[int], None] | None = None) -> Blob:
        if place.suffix == ".safetensors" and place.parent.name == "base":
            begun.set()
        return whole(place, on_bytes)

    seen = list[bool]()
    opened = one_pass.open_whole
    monkeypatch.setattr(blobs, "hash_file", hash_file)
    monkeypatch.setattr(one_pass, "open_whole", lambda *args: (seen.append(begun.wait(60)), opened(*args))[1])
    assert kept(build(settled)) == clean(settled)
    assert seen[0]


def test_a_killed_pass_goes_on_beside_the_hashing(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _beside(monkeypatch)
    with monkeypatch.context() as patch:
        _kill_at(patch, "third block")
        with pytest.raises(Killed):
            build(settled)
    assert kept(build(settled)) == clean(settled)


def test_a_file_that_cannot_be_hashed_beside_the_pass(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _beside(monkeypatch)

    whole = blobs.hash_file

    def unreadable(place: Path, on_bytes: Callable[[int], None] | None = None) -> Blob:
        if place.suffix == ".safetensors" and place.parent.name == "base":
            raise OSError(errno.EIO, "Input/output error")
        return whole(place, on_bytes)

    monkeypatch.setattr(blobs, "hash_file", unreadable)
    with pytest.raises(SourceInvalid, match=r"base\.b.*cannot be read \(Input/output error\)"):
        build(settled)
    project = Project.load(settled)
    assert records.manifest_keys(project.store) == []
    assert records.record_keys(project.store) == []


def test_notes_are_forgotten(settled: Path) -> None:
    import sqlite3

    project = build(settled)
    rows = sqlite3.connect(project.store.state).execute("SELECT kind FROM facts").fetchall()
    assert [kind for (kind,) in rows if kind.startswith("first pass")] == []
