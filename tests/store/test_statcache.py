"""The stat cache: never wrong, and never in the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from builder.keys import digest_bytes
from builder.store import statcache
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.statcache import StatCache


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: nothing in these tests changes twice within a clock tick."""
    monkeypatch.setattr(statcache, "RACY_NS", 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 1000)
    time.sleep(0.02)
    return path


def test_a_file_is_hashed_once(store: Store, file: Path, old: None) -> None:
    told: list[int] = []
    cache = StatCache(store)
    assert cache.known(file) is None
    assert cache.digest(file, told.append) == digest_bytes(b"abc" * 1000)
    assert sum(told) == 3000
    assert cache.known(file) == digest_bytes(b"abc" * 1000)
    assert StatCache(store).digest(file, told.append) == digest_bytes(b"abc" * 1000)
    assert sum(told) == 3000


def test_a_file_that_just_changed_is_not_believed(store: Store, file: Path) -> None:
    cache = StatCache(store)
    cache.digest(file)
    assert cache.known(file) is None
    status = file.stat()
    os.utime(file, ns=(0, status.st_mtime_ns - 10**12))  # an old mtime does not make it older
    cache.digest(file)
    assert cache.known(file) is None


def test_the_same_size_and_mtime_do_not_hide_a_change(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    cache.digest(file)
    status = file.stat()
    file.write_bytes(b"xyz" * 1000)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.known(file) is None
    assert cache.digest(file) == digest_bytes(b"xyz" * 1000)


def test_replacing_truncating_touching(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    cache.digest(file)
    other = file.with_name("other")
    other.write_bytes(b"xyz" * 1000)
    other.rename(file)
    assert cache.known(file) is None
    assert cache.digest(file) == digest_bytes(b"xyz" * 1000)
    os.truncate(file, 3)
    assert cache.digest(file) == digest_bytes(b"xyz")
    time.sleep(0.02)
    file.touch()
    assert cache.known(file) is None
    assert cache.digest(file) == digest_bytes(b"xyz")


def test_a_file_that_changes_while_it_is_read_is_not_remembered(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)

    def meddle(count: int) -> None:
        if count == 3000:
            file.write_bytes(b"xyz" * 1000)

    cache.digest(file, meddle)
    assert cache.known(file) is None


def test_a_missing_file_is_the_callers_problem(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StatCache(store).digest(tmp_path / "no")


def test_facts(store: Store) -> None:
    cache = StatCache(store)
    assert cache.get("names", "k") is None
    cache.put("names", "k", b"\0value")
    cache.put("names", "k", b"\0newer")
    assert StatCache(store).get("names", "k") == b"\0newer"
    assert cache.get("other", "k") is None


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all, but long enough to be read" * 50, b"SQLite format 3\0"]
)
def test_a_damaged_database_is_made_anew(store: Store, file: Path, old: None, content: bytes) -> None:
    store.state.write_bytes(content)
    cache = StatCache(store)
    for _ in range(3):
        assert cache.digest(file) == digest_bytes(b"abc" * 1000)
    assert cache.known(file) is not None


def test_another_versions_database_is_made_anew(store: Store, file: Path, old: None) -> None:
    with sqlite3.connect(store.state) as connection:
        connection.execute("CREATE TABLE files (x)")
        connection.execute("PRAGMA user_version = 77")
    connection.close()
    cache = StatCache(store)
    cache.digest(file)
    cache.digest(file)
    assert cache.known(file) == digest_bytes(b"abc" * 1000)


def test_a_flipped_row_is_no_hit(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    cache.digest(file)
    cache.put("k", "k", b"value")
    cache.close()
    with sqlite3.connect(store.state) as connection:
        connection.execute("UPDATE files SET digest = replace(digest, substr(digest, 1, 1), 'x')")
        connection.execute("UPDATE facts SET value = x'00'")
    connection.close()
    assert cache.known(file) is None
    assert cache.get("k", "k") is None


def test_every_byte_of_the_database_may_be_damaged(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    right = cache.digest(file)
    cache.close()
    good = store.state.read_bytes()
    for position in range(0, len(good), 97):
        store.state.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        for suffix in ("-wal", "-shm"):
            store.state.with_name(store.state.name + suffix).unlink(missing_ok=True)
        fresh = StatCache(store)
        assert fresh.known(file) in (None, right)
        assert fresh.digest(file) == right
        fresh.close()


def test_a_folder_in_its_place_or_no_folder_at_all(store: Store, file: Path) -> None:
    store.state.mkdir()
    assert StatCache(store).digest(file) == digest_bytes(b"abc" * 1000)
    gone = StatCache(Store(store.root / "gone"))
    assert gone.digest(file) == digest_bytes(b"abc" * 1000)
    gone.put("k", "k", b"")
    assert gone.get("k", "k") is None


def test_a_locked_database_is_done_without(
    store: Store, file: Path, old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statcache, "_TIMEOUT_S", 0.05)
    StatCache(store).put("k", "k", b"v")
    other = sqlite3.connect(store.state, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache = StatCache(store)
    assert cache.digest(file) == digest_bytes(b"abc" * 1000)
    other.execute("ROLLBACK")
    other.close()
    cache.digest(file)
    assert cache.known(file) is not None


def test_a_deleted_database_comes_back(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    cache.digest(file)
    cache.close()
    store.state.unlink()
    assert cache.known(file) is None
    cache.digest(file)
    assert cache.known(file) is not None


WORK = """
import sys
from pathlib import Path
from builder.store import statcache
from builder.store.format import open_store
statcache.RACY_NS = 0
cache = statcache.StatCache(open_store(Path(sys.argv[1])))
for n in range(100):
    cache.put(sys.argv[2], str(n), str(n).encode())
    cache.digest(Path(sys.argv[3]))
assert all(cache.get(sys.argv[2], str(n)) == str(n).encode() for n in range(100))
"""


def test_processes_and_threads_share_it(store: Store, file: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", WORK, str(store.root), f"p{n}", str(file)]) for n in range(3)
    ]
    cache = StatCache(store)

    def work(kind: str) -> None:
        for n in range(50):
            cache.put(kind, str(n), b"x")

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.wait() for p in running] == [0, 0, 0]
    assert all(cache.get(f"t{n}", "49") == b"x" for n in range(3))


def test_after_a_fork_the_child_opens_its_own(store: Store, file: Path, old: None) -> None:
    cache = StatCache(store)
    cache.put("k", "k", b"parent")
    child = os.fork()
    if child == 0:
        cache.put("k", "child", b"child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("k", "child") == b"child"
    assert cache.get("k", "k") == b"parent"
