"""Dropping targets: their own bytes go, what others need and all records stay. And pins."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import StoreError
from builder.keys import Digest, make_key
from builder.store import blobs, checkouts, locks, pins, records, releases, views
from builder.store.care import drop as prune
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import Blob, FileEntry, Manifest, Record
from tests.conftest import PATIENCE
from tests.store_scenario import folder_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def build(store: Store, name: str, parts: Mapping[str, str]) -> Manifest:
    """A whole target: a blob and a record per part, the manifest, the view."""
    files = []
    for file, content in parts.items():
        blob = blobs.ingest(store, [content.encode()])
        records.write(store, Record(make_key("block", name, file), "block", blob))
        files.append(FileEntry(file, blob))
    manifest = Manifest(make_key("target", name), "target", name, "2025-01-01T00:00:00Z", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, folder_of(store, manifest), manifest)
    return manifest


def whole(store: Store, manifest: Manifest) -> bool:
    return all(blobs.has(store, entry.blob) for entry in manifest.files)


def test_bytes_go_records_stay_and_shared_bytes_too(store: Store) -> None:
    f16 = build(store, "m_f16", {"a": "f16 block", "norm": "shared"})
    q5 = build(store, "m_5bit", {"a": "5bit block", "norm": "shared"})
    freed = prune.drop(store, {f16.name: [f16.key]})
    assert freed == prune.Freed(1, len("f16 block"))
    assert not (store.models / "m_f16").exists()
    assert whole(store, q5)
    assert views.is_current(store, store.models / "m_5bit", q5)
    assert records.read_manifest(store, f16.key) == f16
    assert records.read(store, make_key("block", "m_f16", "a")) is not None
    assert prune.drop(store, {f16.name: [f16.key]}) == prune.Freed(0, 0)


def test_dropping_both_drops_what_they_shared(store: Store) -> None:
    one, two = build(store, "one", {"a": "1", "n": "shared"}), build(store, "two", {"a": "2", "n": "shared"})
    assert prune.drop(store, {one.name: [one.key], two.name: [two.key]}).blobs == 3
    assert blobs.present(store) == {}


def test_a_target_that_is_not_whole_keeps_nothing(store: Store) -> None:
    one, two = build(store, "one", {"a": "1", "n": "shared"}), build(store, "two", {"a": "2", "n": "shared"})
    blobs.path(store, two.files[0].blob.digest).unlink()
    assert prune.drop(store, {one.name: [one.key]}).blobs == 2
    assert blobs.present(store) == {}


def test_another_checkout_that_needs_a_target_keeps_its_bytes(store: Store, tmp_path: Path) -> None:
    one = build(store, "one", {"a": "1"})
    checkouts.register(store, tmp_path / "other", [one.key])
    freed = prune.drop(store, {one.name: [one.key]}, tmp_path / "mine")
    assert freed.blobs == 0
    assert freed.held == {one.key: (f"the checkout {tmp_path / 'other'}",)}
    assert not (store.models / "one").exists()
    assert prune.drop(store, {one.name: [one.key]}, tmp_path / "other").blobs == 1


def test_another_name_of_the_same_content_keeps_it(store: Store) -> None:
    one = build(store, "one", {"a": "1"})
    views.materialize(store, store.models / "copy", one)
    freed = prune.drop(store, {"one": [one.key]})
    assert (freed.blobs, freed.held) == (0, {one.key: ("the target copy",)})
    assert not (store.models / "one").exists()
    assert views.is_current(store, store.models / "copy", one)


def test_a_release_keeps_what_it_shows_and_says_so(store: Store) -> None:
    one = build(store, "one", {"a": "1"})
    releases.move(store, "production", one, "one")
    assert prune.drop(store, {"one": [one.key]}).held == {one.key: ("the release production",)}
    assert whole(store, one)


def test_what_another_checkout_calls_the_same_is_its_own(store: Store) -> None:
    one = build(store, "one", {"a": "1"})
    other = Store(store.root, "other-1")
    views.materialize(other, other.models / "one", one)
    prune.drop(other, {"one": [one.key]})
    assert views.is_current(store, store.models / "one", one)
    assert not (other.models / "one").exists()


def test_a_folder_that_is_not_a_view_is_never_deleted(store: Store) -> None:
    mine = store.models / "one"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    prune.drop(store, {"one": [make_key("x")]})
    with pytest.raises(StoreError, match="this program did not make"):
        views.remove(store, mine)
    one = Manifest(make_key("one"), "target", "one", "", (FileEntry("a", blobs.ingest(store, [b"1"])),))
    with pytest.raises(StoreError, match="this program did not make"):
        views.materialize(store, mine, one)
    assert (mine / "thesis.txt").read_text() == "mine"


def test_a_running_build_keeps_what_its_keys_lead_to(store: Store) -> None:
    one = build(store, "one", {"a": "1", "b": "2"})
    with locks.build_session(store, [one.key]):
        assert prune.drop(store, {one.name: [one.key]}).blobs == 0
        assert views.is_current(store, store.models / "one", one)
    with locks.build_session(store, [make_key("block", "one", "a")]):
        assert prune.drop(store, {one.name: [one.key]}).blobs == 1
        assert blobs.has(store, one.files[0].blob)
    with locks.build_session(store, [one.key]) as mine:
        assert prune.drop(store, {one.name: [one.key]}, mine=mine).blobs == 1


def test_a_small_file_that_a_running_build_found_here_stays(store: Store) -> None:
    """Nothing speaks of it until the manifest of that build is written."""
    one = build(store, "one", {"a.safetensors": "weights", "tokenizer.json": "tokens", "b.txt": "text"})
    begun, ended = Event(), Event()

    def build_other() -> None:
        with locks.build_session(store, [make_key("other")]):
            blobs.ingest(store, [b"tokens"])
            begun.set()
            ended.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(build_other)
        assert begun.wait(PATIENCE)
        assert prune.drop(store, {one.name: [one.key]}).blobs == 2
        ended.set()
        other.result()
    assert blobs.has(store, one.files[1].blob)


def test_a_build_drops_small_files_of_its_own(store: Store) -> None:
    """It says itself what it needs."""
    with locks.build_session(store, []):
        one = build(store, "one", {"a.safetensors": "weights", "config.json": "{}"})
        assert prune.drop(store, {one.name: [one.key]}).blobs == 2


def test_a_view_of_another_key_under_the_same_name_stays(store: Store) -> None:
    old = build(store, "m", {"a": "old"})
    new = Manifest(make_key("new"), "target", "m", "", (FileEntry("a", blobs.ingest(store, [b"new"])),))
    records.write_manifest(store, new)
    views.materialize(store, store.models / "m", new)
    assert prune.drop(store, {old.name: [old.key]}).blobs == 1
    assert views.is_current(store, store.models / "m", new)


NAMES = [Digest(f"{n:064x}") for n in range(8)]
SETS = st.lists(st.sets(st.sampled_from(NAMES)), max_size=5)


@given(SETS, SETS, st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_a_plan_takes_all_that_only_the_dropped_have_and_nothing_else(
    dropped: list[set[Digest]], others: list[set[Digest]], present: set[Digest], protected: set[Digest]
) -> None:
    def manifest(n: int, digests: set[Digest]) -> Manifest:
        files = tuple(FileEntry(d[-2:], Blob(d, 1)) for d in sorted(digests))
        return Manifest(make_key("m", n), "target", f"t{n}", "", files)

    going = [manifest(n, digests) for n, digests in enumerate(dropped)]
    staying = [manifest(100 + n, digests) for n, digests in enumerate(others)]
    plan = prune.plan_drop(going, staying, [make_key("m", 100)], dict.fromkeys(present, 1), protected)
    needed = set(protected).union(*(d for n, d in enumerate(others) if n == 0 or d <= present))
    assert {blob.digest for blob in plan.blobs} == (set().union(*dropped) & present) - needed


def test_pins(store: Store) -> None:
    assert pins.pinned(store) == frozenset()
    pins.pin(store, "m_f16")
    pins.pin(store, "m_f16")
    pins.pin(store, "über_f16")
    (store.pins / ".DS_Store").touch()
    assert pins.pinned(store) == {"m_f16", "über_f16"}
    pins.unpin(store, "m_f16")
    pins.unpin(store, "m_f16")
    assert pins.pinned(store) == {"über_f16"}
    for name in ("../x", "", ".", "a/b", "a\0"):
        with pytest.raises(StoreError, match="cannot be the name of a target"):
            pins.pin(store, name)
