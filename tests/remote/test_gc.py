"""gc of a remote: what it keeps, what it deletes, and pushes beside it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from builder.keys import Key
from builder.remote import gc as collecting
from builder.remote import layout
from builder.remote import leases as leasing
from builder.remote.gc import CannotGc, GcRuns, Policy, RemoteGcPlan, collect, plan_gc
from builder.remote.inventory import survey
from builder.remote.leases import LeaseLost, Unreadable, lease, leases_of
from builder.remote.push import push
from builder.remote.transport import RemoteError, Transport
from builder.store import seals
from tests.remote.team import TARGETS, Heard, Lacking, Member, Stepping, member, started, wrong_there

NOW = Policy(grace=0.0)


@pytest.fixture
def ann(tmp_path: Path, lines: str) -> Member:
    return member(tmp_path / "ann", lines, *TARGETS)


@pytest.fixture
def transport(ann: Member) -> Transport:
    """With both targets pushed."""
    made = started(ann)
    push(ann.store, made, ann.bundles(), None, Heard())
    return made


def paths(transport: Transport) -> set[str]:
    return {entry.path for entry in transport.list(layout.ROOT)}


def drop_root(transport: Transport, key: Key) -> None:
    transport.delete([e.path for e in transport.list(layout.ROOTS) if key in e.path])


def test_what_roots_lead_to_stays(transport: Transport) -> None:
    before = paths(transport)
    assert collect(transport, NOW, Heard()).is_empty
    assert paths(transport) == before


def test_what_nothing_leads_to_goes_but_for_what_others_need(ann: Member, transport: Transport) -> None:
    drop_root(transport, ann.plan("m_8bit").key)
    before = paths(transport)
    mine = ann.bundles(["m_4bit"])[0]
    plan = plan_gc(survey(transport), NOW)
    assert paths(transport) == before  # a look
    assert len(plan.blobs) == 5
    collect(transport, NOW, Heard())
    left = paths(transport)
    assert {layout.blob(blob.digest) for blob in mine.blobs} <= left
    assert {text.path for text in mine.texts} <= left
    assert not any(path.startswith(layout.TARGETS) and ann.plan("m_8bit").key in path for path in left)
    assert len([path for path in left if path.startswith(layout.BLOBS)]) == len(mine.blobs)
    assert wrong_there(transport) == []
    sent = push(ann.store, transport, ann.bundles(), None, Heard())
    assert len(sent.blobs) == 5
    assert wrong_there(transport) == []


@pytest.mark.parametrize("folder", [layout.ROOTS, layout.TARGETS, layout.ACTIONS, layout.BLOBS])
def test_a_listing_that_lacks_what_is_there_deletes_nothing(
    transport: Transport, ann: Member, folder: str
) -> None:
    before = paths(transport)
    lacking: Transport = Lacking(transport, folder)  # type: ignore[assignment]
    assert not any(entry.path.startswith(folder) for entry in lacking.list(layout.ROOT))
    collect(lacking, NOW, Heard())
    assert paths(transport) == before
    assert wrong_there(transport) == []


def test_what_is_new_stays(ann: Member, transport: Transport) -> None:
    drop_root(transport, ann.plan("m_8bit").key)
    plan = plan_gc(survey(transport), Policy(grace=3600))
    assert plan.is_empty
    assert plan.fresh == 0  # its manifest is new, so it needs its blobs
    transport.delete([layout.manifest(ann.plan("m_8bit").key)])
    assert plan_gc(survey(transport), Policy(grace=3600)).is_empty


def test_old_targets_are_given_up_but_for_the_newest_of_each_name(tmp_path: Path) -> None:
    ann = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    transport = started(ann)
    push(ann.store, transport, ann.bundles(), None, Heard())
    root = next(e.path for e in transport.list(layout.ROOTS) if ann.plan("m_8bit").key in e.path)
    data = transport.read(root)
    assert data is not None
    text = seals.unsealed(data)
    assert text is not None
    renamed = seals.sealed(text.replace("m_8bit", "m_4bit"))  # the former m_4bit
    transport.delete([root])
    transport.write(root, renamed)
    aged = tmp_path / "remote" / root
    os.utime(aged, (time.time() - 90 * 86400,) * 2)
    assert plan_gc(survey(transport), Policy(0.0, 100)).given_up == ()
    declared = Policy(0.0, 30, frozenset({ann.plan("m_8bit").key}))
    assert plan_gc(survey(transport), declared).given_up == ()
    plan = collect(transport, Policy(0.0, 30), Heard())
    assert [given.path for given in plan.given_up] == [root]
    assert wrong_there(transport) == []
    assert layout.manifest(ann.plan("m_4bit").key) in paths(transport)
    mine = next(e.path for e in transport.list(layout.ROOTS))
    os.utime(tmp_path / "remote" / mine, (time.time() - 90 * 86400,) * 2)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())  # the last push counts
    assert time.time() - (tmp_path / "remote" / mine).stat().st_mtime < 3600


def test_doubt_refuses(ann: Member, transport: Transport) -> None:
    drop_root(transport, ann.plan("m_8bit").key)
    before = paths(transport)
    root = next(entry.path for entry in transport.list(layout.ROOTS))
    for path in (root, layout.manifest(ann.plan("m_4bit").key), layout.lease("a" * 32)):
        former = transport.read(path)
        transport.write(path, b"half of i")
        with pytest.raises(Unreadable, match="cannot be read"):
            collect(transport, NOW, Heard())
        transport.write(path, former) if former else transport.delete([path])
    assert paths(transport) == before


def test_a_server_that_mixes_writers_up_is_refused(ann: Member, transport: Transport) -> None:
    transport.write(layout.FORMAT, seals.sealed('{"creates": false, "format": 1}\n'))
    with pytest.raises(CannotGc):
        collect(transport, NOW, Heard())


def test_one_gc_at_a_time(ann: Member, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    transport.write(layout.GC, seals.sealed('{"id": "another"}\n'))
    with pytest.raises(GcRuns, match="since 0 minutes"):
        collect(transport, NOW, Heard())
    monkeypatch.setattr(collecting, "GC_VOID_S", -1.0)  # it is dead
    drop_root(transport, ann.plan("m_8bit").key)
    assert len(collect(transport, NOW, Heard()).blobs) == 5
    assert transport.head(layout.GC) is None


def test_a_gc_that_was_taken_over_stops(transport: Transport, ann: Member) -> None:
    drop_root(transport, ann.plan("m_8bit").key)
    before = paths(transport)

    def steal(step: str) -> None:
        if step == f"create {layout.GC} done":
            transport.write(layout.GC, seals.sealed('{"id": "another"}\n'))

    with pytest.raises(RemoteError, match="another gc took over"):
        collect(Stepping(transport, steal), NOW, Heard())  # type: ignore[arg-type]
    assert paths(transport) == before | {layout.GC}


# -- beside pushes ------------------------------------------------------------------------------------------


def test_what_a_running_push_names_stays(ann: Member, transport: Transport) -> None:
    bundle = ann.bundles(["m_8bit"])[0]
    drop_root(transport, bundle.key)
    with lease(transport, bundle.keys, [blob.digest for blob in bundle.blobs], Heard()):
        assert collect(transport, NOW, Heard()).is_empty
    assert not plan_gc(survey(transport), NOW).is_empty


def test_a_dead_lease_ends(transport: Transport, ann: Member) -> None:
    bundle = ann.bundles(["m_8bit"])[0]
    drop_root(transport, bundle.key)
    with lease(transport, bundle.keys, [blob.digest for blob in bundle.blobs], Heard()):
        held = survey(transport)
        (path,) = (one.path for one in leases_of(transport, held.entries.values()))
        old = survey(transport, time.time() + 3 * leasing.VOID_S)
        plan: RemoteGcPlan = plan_gc(old, NOW)
    assert plan.void == (path,)
    assert len(plan.blobs) == 5


def test_a_push_that_slept_makes_nothing_visible(
    ann: Member, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease was void, a gc passed, and the blobs that it relied on are gone."""
    bundle = ann.bundles(["m_8bit"])[0]
    drop_root(transport, bundle.key)
    transport.delete([text.path for text in bundle.texts if text.is_manifest])
    real = time.time
    slept = threading.Event()

    def sleep(step: str) -> None:
        if step == f"list {layout.ROOT} done" and not slept.is_set() and list(transport.list(layout.LEASES)):
            slept.set()
            monkeypatch.setattr(time, "time", lambda: real() + 2 * leasing.VOID_S)

    with pytest.raises(LeaseLost):
        push(ann.store, Stepping(transport, sleep), [bundle], None, Heard())  # type: ignore[arg-type]
    assert slept.is_set()
    assert transport.head(layout.manifest(bundle.key)) is None


def test_a_push_waits_for_a_gc(ann: Member, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "_LOOK_S", 0.02)
    bundle = ann.bundles(["m_8bit"])[0]
    drop_root(transport, bundle.key)
    heard = Heard()

    def between(step: str) -> None:
        """gc has looked at the leases. A push of what it deletes begins now, and waits."""
        if step.startswith("delete v1/gc") or not step.startswith("delete") or step.endswith("done"):
            return
        if pusher.ident is None:
            pusher.start()
            while not heard.notes:
                time.sleep(0.01)

    pusher = threading.Thread(target=push, args=(ann.store, transport, [bundle], None, heard))
    collect(Stepping(transport, between), NOW, Heard())  # type: ignore[arg-type]
    pusher.join()
    assert heard.notes[0] == "waiting for a gc of remote team to end"
    assert wrong_there(transport) == []
    assert transport.head(layout.manifest(bundle.key)) is not None
    assert collect(transport, NOW, Heard()).is_empty
