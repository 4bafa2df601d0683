"""kill -9 at every step of push, pull and gc: 0 corrupt, 0 lost. Also of the server, in the middle of a
push.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.keys import digest_bytes
from builder.remote import layout
from builder.remote import leases as leasing
from builder.remote import push as pushing
from builder.remote.gc import Policy, collect
from builder.remote.push import push
from builder.remote.transport import Transport
from builder.store import records
from tests.conftest import PATIENCE, ROOT
from tests.remote.killed import do, dying
from tests.remote.servers import BUCKET, S3
from tests.remote.team import (
    TARGETS,
    Heard,
    Member,
    Stepping,
    member,
    started,
    wrong_here,
    wrong_there,
)

WHATS = ("push", "pull", "gc")
EVERY = {"quick": 23, "all": 1}


def die_at(what: str, one: Member, transport: Transport, step: int) -> bool:
    """Whether a child was killed at that step. A folder may be used after a fork."""
    child = os.fork()
    if child == 0:
        try:
            do(what, one, Stepping(transport, dying(step)))  # type: ignore[arg-type]
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    assert os.WEXITSTATUS(status) == 0
    return False


def prepare(what: str, ann: Member, transport: Transport) -> None:
    """For a pull: pushed. For a gc: pushed, with a target that nothing leads to and a half push."""
    if what == "push":
        return
    push(ann.store, transport, ann.bundles(), None, Heard())
    if what == "gc":
        key = ann.plan("m_8bit").key
        transport.delete([e.path for e in transport.list(layout.ROOTS) if key in e.path])
        transport.write(layout.blob(digest_bytes(b"left")), b"left")  # of a push that was killed


def steps(every: int) -> Iterator[int]:
    yield from range(0, 10_000, every)


@pytest.mark.parametrize("how", ["quick", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", WHATS)
def test_kill_a_client_at_every_step(
    what: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "GC_VOID_S", -1.0)  # the dead need not be waited for
    ann = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    ben = member(tmp_path / "ben", 'url = "../remote"')
    transport = started(ann)
    prepare(what, ann, transport)
    template, clean = tmp_path / "template", tmp_path / "clean"
    shutil.copytree(tmp_path / "remote", template)
    shutil.copytree(ben.file.parent / "store", clean)
    died = 0
    for step in steps(EVERY[how]):
        shutil.rmtree(tmp_path / "remote")
        shutil.copytree(template, tmp_path / "remote")
        shutil.rmtree(ben.file.parent / "store")
        shutil.copytree(clean, ben.file.parent / "store")
        actor = ben if what == "pull" else ann
        if not die_at(what, actor, transport, step):
            break
        died += 1
        assert wrong_there(transport) == [], step
        assert wrong_here(ben.store) == [], step
        if what == "gc":
            assert transport.head(layout.manifest(ann.plan("m_4bit").key)) is not None, step
        do(what, actor, transport) if what != "gc" else finish_gc(transport, monkeypatch)
        assert wrong_there(transport) == [], step
        assert wrong_here(ben.store) == [], step
        if what == "push":
            assert push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard()).is_empty, step
        elif what == "pull":
            assert records.read_manifest(ben.store, ben.plan("m_4bit").key), step
        else:
            held = {e.path for e in transport.list(layout.BLOBS)}
            assert held == {layout.blob(b.digest) for b in ann.bundles(["m_4bit"])[0].blobs}, step
    print(f"{what}: killed at {died} steps")
    assert died > (1 if how == "quick" else 30)


def finish_gc(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.remote import gc

    with monkeypatch.context() as patch:
        patch.setattr(gc, "GC_VOID_S", -1.0)
        collect(transport, Policy(grace=0.0), Heard())


@pytest.mark.slow
@pytest.mark.parametrize("what", WHATS)
def test_kill_a_client_of_a_bucket(
    what: str, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At some steps, as each needs a new interpreter."""
    monkeypatch.setattr(leasing, "GC_VOID_S", -1.0)
    for step in (1, 9, 17, 29, 41, 66, 90):
        text = f'url = "s3://{BUCKET}/{what}-{step}"\nendpoint = "{s3.endpoint}"'
        ann = member(tmp_path / f"ann{step}", text, *TARGETS)
        ben = member(tmp_path / f"ben{step}", text)
        transport = started(ann)
        prepare(what, ann, transport)
        actor = ben if what == "pull" else ann
        done = subprocess.run(
            [sys.executable, "-m", "tests.remote.killed", what, str(actor.file), str(step)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert wrong_there(transport) == [], step
        assert wrong_here(ben.store) == [], step
        do(what, actor, transport) if what != "gc" else finish_gc(transport, monkeypatch)
        assert wrong_there(transport) == [], step
        assert wrong_here(ben.store) == [], step


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_push(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back after two seconds, and the push ends well."""
    monkeypatch.setattr(pushing, "PAUSES", (3.0, 3.0, 3.0))
    text = f'url = "s3://{BUCKET}/server"\nendpoint = "{s3.endpoint}"'
    ann = member(tmp_path / "ann", text, *TARGETS)
    transport = started(ann)
    seen: list[str] = []

    first = threading.Lock()  # several uploads end at once, and one of them kills

    def kill(step: str) -> None:
        seen.append(step)
        uploaded = len([s for s in seen if s.startswith("upload") and s.endswith("done")])
        if uploaded >= 4 and first.acquire(blocking=False):
            s3.kill()
            again.start()

    def restart() -> None:
        time.sleep(2)
        s3.start()

    again = threading.Thread(target=restart)
    heard = Heard()
    push(ann.store, Stepping(transport, kill), ann.bundles(), None, heard)  # type: ignore[arg-type]
    again.join()
    assert any("tried again" in note for note in heard.notes)
    assert wrong_there(transport) == []
    assert push(ann.store, transport, ann.bundles(), None, Heard()).is_empty
