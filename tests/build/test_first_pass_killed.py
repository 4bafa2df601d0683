"""A first pass over a base is a process that dies by SIGKILL, anywhere, and the next one goes on.

MODELKILN_KILLS: how many of its calls to the file system are tried. MODELKILN_SEED repeats the choice.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builder.console.events import BlockDone, Event
from builder.project.project import Project
from builder.sources import catalog, unread
from builder.store import statcache
from builder.store.care import verify
from tests.build.test_first_pass import DECLARATION, SMALL, SOON, TARGETS, clean, kept
from tests.conftest import PATIENCE
from tests.soak.machine import PRELOAD
from tests.soak.person import die_after
from tests.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("MODELKILN_KILLS") or 12)
NEVER = sys.maxsize


def first_build(file: Path, calls: int, said: Any) -> None:
    """Builds everything, in a process that kills itself at that call. Says how many calls and blocks."""
    from builder.release.delivery import deliver

    catalog.HASH_AT_ONCE = SMALL
    statcache.RACY_NS = unread.RACY_NS = SOON
    told: list[Event] = []
    project = Project.load(file)
    made = die_after(calls, project.store.root)
    deliver(project, "m_4bit", TARGETS, (), told.append)
    said.send((made(), sum(event.made for event in told if isinstance(event, BlockDone))))


def run(file: Path, calls: int) -> tuple[int, int] | None:
    """What the process says, None where it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, __name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=first_build, args=(file, calls, theirs), daemon=True)
    process.start()
    theirs.close()
    process.join(PATIENCE)
    if process.exitcode == -9:
        return None
    assert process.exitcode == 0, f"a first build ended with {process.exitcode}"
    said: tuple[int, int] = ours.recv()
    return said


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalog, "HASH_AT_ONCE", SMALL)
    monkeypatch.setattr(statcache, "RACY_NS", SOON)
    monkeypatch.setattr(unread, "RACY_NS", SOON)
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter")
    (tmp_path / "artifacts.toml").write_text(DECLARATION)
    time.sleep(2 * SOON / 1e9)
    return tmp_path / "artifacts.toml"


def test_it_is_killed_anywhere(file: Path, seed: int) -> None:
    draw = random.Random(seed)
    expected, store = clean(file), file.parent / "store"
    whole = run(file, NEVER)
    assert whole is not None
    calls, blocks = whole
    assert kept(Project.load(file)) == expected
    gone_on = 0
    for call in sorted(draw.sample(range(1, calls), min(KILLS, calls - 1))):
        shutil.rmtree(store)
        assert run(file, call) is None, f"not killed at call {call} of {calls}"
        again = draw.randrange(1, calls)
        killed = run(file, again) is None  # the one that goes on may die too
        with_notes = run(file, NEVER)
        assert with_notes is not None
        project = Project.load(file)
        where = f"killed at {call} and {again if killed else 'not again'} of {calls}"
        assert kept(project) == expected, where
        assert verify.verify(project.store).findings == (), where
        gone_on += with_notes[1] < blocks
        project.cache.close()
    assert gone_on  # what the dead had noted was not made again
