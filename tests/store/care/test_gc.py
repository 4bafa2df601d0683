"""gc: what nobody needs goes, doubt keeps, and the plan is what happens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import GcRefused, StoreError
from builder.keys import Digest, Key, make_key
from builder.store import blobs, locks, pins, records, seals, views
from builder.store import checkouts as roots
from builder.store.care import gc, inventory
from builder.store.care.gc import apply_gc, plan_gc
from builder.store.care.inventory import BlobFile, HeldManifest, HeldRecord, Inventory, survey
from builder.store.care.policy import Policy
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import Blob, FileEntry, Manifest, Record
from tests.conftest import PATIENCE, wait_until
from tests.store_scenario import folder_of

NOW = Policy(grace_s=0)
DAY = 86_400 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def build(store: Store, name: str, parts: Mapping[str, str], age_days: float = 0) -> Manifest:
    files = []
    for file, content in parts.items():
        blob = blobs.ingest(store, [content.encode()])
        records.write(store, Record(make_key("block", name, file), "block", blob))
        files.append(FileEntry(file, blob))
    manifest = Manifest(make_key("target", name), "target", name, "2025-01-01T00:00:00Z", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, folder_of(store, manifest), manifest)
    used = time.time_ns() - int(age_days * DAY)
    os.utime(records.manifest_path(store, manifest.key), ns=(used, used))
    return manifest


def collect(store: Store, keys: list[Key], policy: Policy = NOW) -> gc.GcPlan:
    plan = plan_gc(survey(store), keys, policy, time.time_ns())
    done = apply_gc(store, plan)
    assert (done.blobs, done.bytes) == (len(plan.blobs), plan.bytes)
    return plan


def is_whole(store: Store, manifest: Manifest) -> bool:
    return all(blobs.has(store, e.blob) for e in manifest.files) and views.is_current(
        store, folder_of(store, manifest), manifest
    )


def test_what_no_root_leads_to_goes(store: Store) -> None:
    old, new = build(store, "old", {"a": "1", "n": "shared"}), build(store, "new", {"a": "22", "n": "shared"})
    plan = collect(store, [new.key])
    assert [m.name for m in plan.manifests] == ["old"]
    assert plan.views == (store.models / "old",)
    assert [b.size for b in plan.blobs] == [1]
    assert plan.records == (make_key("block", "old", "a"),)  # the other record's blob is still there
    assert is_whole(store, new)
    assert not (store.models / "old").exists()
    assert records.read_manifest(store, old.key) is None
    assert collect(store, [new.key]).is_empty


def test_keys_of_actions_keep_the_blocks_of_an_unfinished_build(store: Store) -> None:
    block = blobs.ingest(store, [b"block"])
    records.write(store, Record(make_key("mine"), "block", block))
    other = blobs.ingest(store, [b"other"])
    records.write(store, Record(make_key("other"), "block", other))
    plan = collect(store, [make_key("mine")])
    assert [b.digest for b in plan.blobs] == [other.digest]
    assert plan.records == (make_key("other"),)
    assert blobs.has(store, block)


def test_no_roots_refuses_unless_told(store: Store) -> None:
    target = build(store, "t", {"a": "1"})
    with pytest.raises(GcRefused, match="no target is declared, so everything would be deleted"):
        plan_gc(survey(store), [], NOW, time.time_ns())
    assert is_whole(store, target)
    collect(store, [], replace(NOW, allow_no_roots=True))
    assert blobs.present(store) == {}


def test_the_grace_period_keeps_what_is_young(store: Store) -> None:
    build(store, "t", {"a": "1"})
    blobs.ingest(store, [b"nobody speaks of it"])
    assert collect(store, [make_key("root")], Policy(grace_s=60)).is_empty
    assert len(collect(store, [make_key("root")], NOW).blobs) == 2


def test_a_pinned_target_stays_at_any_key(store: Store) -> None:
    target = build(store, "t", {"a": "1"})
    pins.pin(store, "t")
    assert collect(store, [make_key("root")]).is_empty
    assert is_whole(store, target)


def test_keep_days_counts_from_the_last_use(store: Store) -> None:
    stale, fresh = build(store, "stale", {"a": "1"}, 40), build(store, "fresh", {"a": "2"}, 40)
    records.mark_used(store, fresh.key)
    plan = collect(store, [make_key("root")], Policy(keep_days=30, grace_s=0))
    assert [m.name for m in plan.manifests] == ["stale"]
    assert is_whole(store, fresh)
    assert not is_whole(store, stale)


def test_max_size_takes_the_least_recently_used_and_never_a_root(store: Store) -> None:
    root = build(store, "root", {"a": "r" * 1000}, 90)
    for days, name in ((50, "oldest"), (40, "older"), (3, "newer")):
        build(store, name, {"a": name[0] * 100 + name, "n": "shared" * 10}, days)
    assert collect(store, [root.key], Policy(max_bytes=10_000, grace_s=0)).is_empty
    plan = plan_gc(survey(store), [root.key], Policy(max_bytes=1300, grace_s=0), time.time_ns())
    assert [m.name for m in plan.manifests] == ["oldest"]
    assert plan.kept_bytes <= 1300
    plan = collect(store, [root.key], Policy(max_bytes=1, grace_s=0))
    assert {m.name for m in plan.manifests} == {"oldest", "older", "newer"}
    assert (plan.kept_bytes, plan.over) == (1000, 999)
    assert is_whole(store, root)


def test_a_running_build_keeps_its_keys_and_every_blob_without_a_record(store: Store) -> None:
    mine = build(store, "mine", {"a": "1"})
    orphan = blobs.ingest(store, [b"its record comes next"])
    with locks.build_session(store, [mine.key]):
        assert collect(store, [make_key("root")]).is_empty
    assert blobs.has(store, orphan)
    assert len(collect(store, [make_key("root")]).blobs) == 2


def test_bytes_that_a_running_build_found_in_the_store_stay(store: Store) -> None:
    build(store, "old", {"a": "same bytes"})
    plan = plan_gc(survey(store), [make_key("root")], NOW, time.time_ns())
    assert len(plan.blobs) == 1
    with locks.build_session(store, [make_key("new block")]):
        blob = blobs.ingest(store, [b"same bytes"])
        apply_gc(store, plan)
        records.write(store, Record(make_key("new block"), "block", blob))
        assert blobs.has(store, blob)


def test_what_a_running_build_has_made_or_used_stays(store: Store) -> None:
    """Between two steps of a run no key holds what the first made for the second."""
    build(store, "before", {"a": "1"}, age_days=1)
    used = build(store, "used", {"a": "2"}, age_days=1)
    with locks.build_session(store, []):
        made = build(store, "made", {"a": "3"})
        records.mark_used(store, used.key)
        assert [m.name for m in collect(store, [make_key("root")]).manifests] == ["before"]
        assert is_whole(store, made)
        assert is_whole(store, used)
    assert {m.name for m in collect(store, [make_key("root")]).manifests} == {"made", "used"}


def test_what_became_needed_after_the_plan_stays(store: Store) -> None:
    target, other = build(store, "t", {"a": "1"}), build(store, "u", {"a": "2"})
    plan = plan_gc(survey(store), [make_key("root")], NOW, time.time_ns())
    assert len(plan.manifests) == 2
    with locks.build_session(store, [target.key]):
        apply_gc(store, plan)
    assert is_whole(store, target)
    assert not is_whole(store, other)


def test_nothing_goes_that_was_not_shown(store: Store) -> None:
    build(store, "t", {"a": "1"})
    plan = plan_gc(survey(store), [make_key("root")], NOW, time.time_ns())
    later = build(store, "later", {"a": "2"}, age_days=2)
    apply_gc(store, plan)
    assert is_whole(store, later)


def test_checkouts_that_share_the_store(store: Store, tmp_path: Path) -> None:
    mine, theirs = build(store, "mine", {"a": "1"}), build(store, "theirs", {"a": "2"})
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    roots.register(store, here, [mine.key, theirs.key])
    roots.register(store, there, [theirs.key])
    assert [c.exists for c in sorted(roots.registered(store), key=lambda c: c.folder)] == [True, False]
    plan = plan_gc(survey(store, here), [make_key("changed")], NOW, time.time_ns(), checkout=here)
    assert [m.name for m in plan.manifests] == ["mine"]  # what this checkout declared before does not count
    apply_gc(store, plan)
    assert is_whole(store, theirs)
    assert roots.forget(store, there)
    assert not roots.forget(store, there)
    plan = plan_gc(survey(store, here), [mine.key], NOW, time.time_ns(), checkout=here)
    assert [m.name for m in plan.manifests] == ["theirs"]


def test_registering_the_same_again_writes_nothing(store: Store, tmp_path: Path) -> None:
    roots.register(store, tmp_path, [make_key("a"), make_key("b")])
    (file,) = store.roots.iterdir()
    before = file.stat().st_ino
    roots.register(store, tmp_path, [make_key("b"), make_key("a")])
    assert file.stat().st_ino == before


def test_unreadable_roots_of_a_checkout_refuse(store: Store, tmp_path: Path) -> None:
    roots.register(store, tmp_path, [make_key("a")])
    (file,) = store.roots.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(StoreError, match="the roots of a checkout cannot be read"):
        survey(store)


def test_a_damaged_record_keeps_blobs_that_it_may_speak_of(store: Store) -> None:
    blob = blobs.ingest(store, [b"x"])
    records.write(store, Record(make_key("r"), "block", blob))
    records.path(store, make_key("r")).write_text("damaged")
    assert survey(store).damaged == (records.path(store, make_key("r")),)
    assert collect(store, [make_key("root")]).is_empty


def test_results_left_overs_and_strangers(store: Store) -> None:
    seals.write(store, store.evals / "result", "score = 1\n")
    left = store.tmp / ("1" * 32)
    left.write_bytes(b"x" * 100)
    (store.models / "mine").mkdir(parents=True)
    (store.models / "mine" / "file").write_text("put here by a person")
    plan = collect(store, [make_key("root")])
    assert plan.temporaries == (left,)
    assert plan.bytes == 100
    assert seals.read(store.evals / "result") == "score = 1\n"
    assert (store.models / "mine" / "file").exists()


def test_the_view_of_a_manifest_that_is_gone_goes(store: Store) -> None:
    target = build(store, "t", {"a": "1"})
    records.manifest_path(store, target.key).unlink()
    assert collect(store, [make_key("root")]).views == (store.models / "t",)
    assert not (store.models / "t").exists()


DIGESTS = [Digest(f"{n:064x}") for n in range(6)]
KEYS = [make_key("k", n) for n in range(8)]
ENTRY = st.tuples(st.sampled_from(KEYS), st.sets(st.sampled_from(DIGESTS), max_size=3), st.integers(0, 9))


@given(
    st.lists(ENTRY, max_size=6),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(DIGESTS), st.integers(0, 9)), max_size=6),
    st.dictionaries(st.sampled_from(DIGESTS), st.integers(1, 50)),
    st.sets(st.sampled_from(KEYS), min_size=1),
    st.none() | st.integers(0, 100),
    st.none() | st.integers(0, 9),
)
def test_no_plan_ever_takes_what_a_root_needs(
    manifests: list[tuple[Key, set[Digest], int]],
    found: list[tuple[Key, Digest, int]],
    sizes: dict[Digest, int],
    keys: set[Key],
    max_bytes: int | None,
    keep: int | None,
) -> None:
    now = 10 * DAY
    held = {
        key: HeldManifest(
            Manifest(
                key, "target", f"t{n}", "", tuple(FileEntry(d[-2:], Blob(d, 1)) for d in sorted(digests))
            ),
            now - age * DAY,
        )
        for n, (key, digests, age) in enumerate(manifests)
    }
    whole = Inventory(
        manifests=held,
        records={key: HeldRecord(digest, now - age * DAY) for key, digest, age in found},
        blobs={digest: BlobFile(size, 0) for digest, size in sizes.items()},
        views=(),
        pinned=frozenset(),
        sessions=(),
        needs=(),
        results={},
        temporaries={},
        damaged=(),
    )
    policy = Policy(keep_days=keep, max_bytes=max_bytes, grace_s=0)
    plan = plan_gc(whole, keys, policy, now)
    gone = {blob.digest for blob in plan.blobs}
    for key, one in held.items():
        if key in keys:
            assert not gone & one.manifest.digests
            assert one.manifest not in plan.manifests
    assert not any(record.digest in gone for key, record in whole.records.items() if key in keys)
    assert not keys & set(plan.records)
    kept = {m.key for m in plan.manifests}
    for key, one in held.items():  # whatever stays is as whole as it was
        if key not in kept:
            assert not gone & one.manifest.digests
    assert plan.bytes + plan.kept_bytes == sum(sizes.values())
    if max_bytes is not None and plan.over:
        assert all(key in keys or key in kept for key in held)
    if max_bytes is None and keep is None:
        assert kept == {key for key in held if key not in keys}


BUILDER = """
import sys, time
from pathlib import Path
from builder.keys import make_key
from builder.store.types import FileEntry, Manifest, Record
from builder.store import blobs, locks, records, views
from builder.store.format import open_store
store = open_store(Path(sys.argv[1]))
names = [f"block{n}" for n in range(6)]
key = make_key("target", "built")
with locks.build_session(store, [key, *(make_key("b", n) for n in names)]):
    print("begin", flush=True)
    files = []
    for name in names:
        with locks.acquire(store, [make_key("b", name)]):
            blob = blobs.ingest(store, [name.encode() * 1000])
            records.write(store, Record(make_key("b", name), "block", blob))
        files.append(FileEntry(name, blob))
    manifest = Manifest(key, "target", "built", "", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, store.models / "built", manifest)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("stops", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_gc_beside_a_builder_that_is_stopped_anywhere(tmp_path: Path, stops: int) -> None:
    """SIGSTOP at a random moment, gc with no grace at all, SIGCONT: the build ends whole."""
    for n in range(stops):
        store, chance = open_store(tmp_path / f"store{n}"), random.Random(n)
        # Old bytes that the builder will find in the store, and that gc is after.
        build(store, "old", {f"x{i}": f"block{i}" * 1000 for i in range(0, 6, 2)})
        command = [sys.executable, "-c", BUILDER, str(store.root)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begin\n"
        for _ in range(5):
            time.sleep(chance.random() * 0.008)
            process.send_signal(signal.SIGSTOP)
            plan = plan_gc(survey(store), [make_key("root")], NOW, time.time_ns())
            if _is_free(store):  # else it was stopped while it held gc's lock: gc would wait for it
                apply_gc(store, plan)
            process.send_signal(signal.SIGCONT)
        key = make_key("target", "built")
        wait_until(partial(_is_built, store, key), process)
        apply_gc(store, plan_gc(survey(store), [make_key("root")], NOW, time.time_ns()))
        assert _is_built(store, key)
        assert process.communicate(b"\n", timeout=PATIENCE) == (b"", None)
        assert process.returncode == 0


def _is_built(store: Store, key: Key) -> bool:
    manifest = records.read_manifest(store, key)
    return manifest is not None and is_whole(store, manifest)


def _is_free(store: Store) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(store.locks / "gc", timeout=0):
            return True
    except Timeout:
        return False


def test_surveying_names_what_it_cannot_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store, "t", {"a": "1"})

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(inventory, "_read", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        survey(store)
