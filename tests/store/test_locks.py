"""Locks between threads and processes, and the registry of running builds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.keys import Key, make_key
from builder.store import locks, tmp
from builder.store.format import open_store
from builder.store.layout import Store
from tests.conftest import PATIENCE
from tests.open_files import DESCRIPTORS, open_below

KEYS = [make_key("lock", n) for n in range(40)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def spawn(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


COUNT = """
import sys
from pathlib import Path
from builder.keys import make_key
from builder.store import locks
from builder.store.format import open_store
store, counter = open_store(Path(sys.argv[1])), Path(sys.argv[2])
for n in range(60):
    with locks.acquire(store, [make_key("lock", n % 5), make_key("lock", 1)]):
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
"""


def test_processes_take_turns(store: Store, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    running = [spawn(COUNT, str(store.root), str(counter)) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    assert counter.read_text() == "180"


def test_threads_take_turns_and_sets_in_any_order_do_not_deadlock(store: Store) -> None:
    inside = [0]
    worst = [0]

    def work(keys: list[Key]) -> None:
        for _ in range(10):
            with locks.acquire(store, keys):
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(KEYS[::step],)) for step in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert worst == [1]


HOLD_THREE = """
import sys
from pathlib import Path
from builder.keys import make_key
from builder.store import locks
from builder.store.format import open_store
with locks.acquire(open_store(Path(sys.argv[1])), [make_key("lock", n) for n in range(3)]):
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_on_wait_is_called_once_for_another_process(store: Store) -> None:
    other = spawn(HOLD_THREE, str(store.root))
    assert other.stdout is not None
    assert other.stdout.readline() == "holding\n"
    waits: list[str] = []

    def let_go() -> None:
        waits.append("told")
        other.communicate("\n")

    with locks.acquire(store, KEYS[:3], let_go):
        assert waits == ["told"]
    with locks.acquire(store, KEYS[:3], let_go):
        assert waits == ["told"]


def test_threads_of_one_process_wait_without_a_word(store: Store) -> None:
    said: list[str] = []
    started, got = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        with locks.acquire(store, KEYS[:3], lambda: said.append("told")):
            got.set()

    with locks.acquire(store, KEYS[:3]):
        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(PATIENCE)
        assert not got.wait(0.2)
    thread.join(PATIENCE)
    assert got.is_set()
    assert said == []


def test_a_search_may_choose_and_build_under_any_key(store: Store) -> None:
    """Keys share stripes. So what is held while other keys are built has stripes of its own."""
    key = make_key("any")
    kinds: tuple[locks.Kind, ...] = ("publication-", "share-", "routing-", "search-", "choice-", "")
    with ExitStack() as held:
        for kind in kinds:
            held.enter_context(locks.acquire(store, [key], kind=kind))
        held.enter_context(locks.gc_lock(store))
    with locks.acquire(store, [key], kind="search-"), locks.measuring(store):
        pass


def test_no_keys_no_locks(store: Store) -> None:
    with locks.acquire(store, []):
        pass
    assert [p.name for p in store.locks.iterdir()] == ["gc"]


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts descriptors in /proc")
def test_many_keys_hold_few_descriptors(store: Store) -> None:
    with locks.acquire(store, [make_key("many", n) for n in range(2000)]):
        assert 0 < len(open_below(store.locks)) <= locks.STRIPES
    assert not open_below(store.locks)


def test_a_session_is_live_until_it_ends(store: Store) -> None:
    with locks.build_session(store, KEYS[:2]) as mine, locks.build_session(store, KEYS[2:3]):
        assert set(locks.live_sessions(store)) == {frozenset(KEYS[:2]), frozenset(KEYS[2:3])}
        assert locks.live_sessions(store, but=mine) == (frozenset(KEYS[2:3]),)
    assert locks.live_sessions(store) == ()
    assert list((store.locks / "builds").iterdir()) == []


def test_a_failed_build_ends_its_session(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), locks.build_session(store, KEYS):
        raise ZeroDivisionError
    assert locks.live_sessions(store) == ()


HOLD = """
import sys, os
from pathlib import Path
from builder.keys import make_key
from builder.store import locks, tmp
from builder.store.format import open_store
store = open_store(Path(sys.argv[1]))
with locks.build_session(store, [make_key("lock", 0)]), locks.acquire(store, [make_key("lock", 0)]):
    with tmp.new_file(store) as staged:
        os.write(staged.fd, b"x" * 1000)
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_a_killed_build_leaves_no_lock_no_session_and_no_file(store: Store) -> None:
    process = spawn(HOLD, str(store.root))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert locks.live_sessions(store) == (frozenset(KEYS[:1]),)
    assert tmp.sweep(store) == 0
    assert len(list(store.tmp.iterdir())) == 1
    process.send_signal(signal.SIGSTOP)  # stopped is not dead
    assert locks.live_sessions(store) == (frozenset(KEYS[:1]),)
    assert tmp.sweep(store) == 0
    process.kill()
    process.wait()
    assert locks.live_sessions(store) == ()
    with locks.build_session(store, KEYS), locks.acquire(store, KEYS[:1]):
        assert not [p for p in store.tmp.iterdir() if p.stat().st_size == 1000]


def test_a_live_session_that_cannot_be_read_stops_who_would_delete(store: Store) -> None:
    with locks.build_session(store, KEYS) as session:
        file = store.locks / "builds" / f"{session.id}.json"
        file.write_text("{")
        with pytest.raises(StoreError, match="what it needs cannot be read"):
            locks.live_sessions(store)
    assert locks.live_sessions(store) == ()


def test_registering_waits_for_gc(store: Store) -> None:
    entered = threading.Event()

    def build() -> None:
        with locks.build_session(store, KEYS):
            entered.set()

    thread = threading.Thread(target=build)
    with locks.gc_lock(store):
        thread.start()
        assert not entered.wait(0.2)
        assert locks.live_sessions(store) == ()
    thread.join(PATIENCE)
    assert entered.is_set()


MEASURE = """
import sys
from pathlib import Path
from builder.store import locks
from builder.store.format import open_store
with locks.measuring(open_store(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_measures_at_a_time(store: Store) -> None:
    other = spawn(MEASURE, str(store.root))
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "held\n"
    waited = []

    def let_go() -> None:
        waited.append(other.poll())
        other.stdin.close()  # type: ignore[union-attr]

    with locks.measuring(store, let_go):
        assert waited == [None]
        other.wait()
    with locks.measuring(store, let_go):
        assert len(waited) == 1
