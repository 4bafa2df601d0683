"""Any moment can be the last: kill -9 and failing system calls at every step of a small build.

After each: the store opens, nothing in it is wrong, every block whose record was written is still there
and not made again, the next run ends where an undisturbed one does, and no left-overs remain.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.store import blobs, records, views
from builder.store.care import gc, inventory, verify
from builder.store.format import open_store
from builder.store.layout import Store
from tests import store_scenario as scenario
from tests.conftest import PATIENCE

SCRIPT = Path(scenario.__file__)
CALLS = (
    *("write", "fsync", "rename", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir"),
    *("chmod", "fchmod", "utimensat", "flock"),
)
FAULTS = ("signal=SIGKILL", "error=EIO", "error=ENOSPC")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the faults")


@dataclass(frozen=True)
class Bench:
    """A prepared store to copy, how an undisturbed run ends, and how often it makes each system call."""

    prepared: Path
    outcome: object
    calls: dict[str, int]
    seconds: float


def command(root: Path, log: Path) -> list[str]:
    return [sys.executable, "-B", str(SCRIPT), str(root), str(log)]


def strace(*options: str) -> list[str]:
    """Without --seccomp-bpf, with which strace 6.1 injects errors but no signals."""
    return ["strace", "-f", "-qq", *options]


def outcome(store: Store) -> object:
    """What a person would see, and nothing of time or place."""
    folders = {
        f"{folder.parent.name}/{folder.name}": {p.name: p.read_bytes() for p in folder.iterdir()}
        for parent in (store.models, store.bases)
        if parent.is_dir()
        for folder in sorted(parent.iterdir())
    }
    return (
        sorted(blobs.present(store)),
        records.record_keys(store),
        records.manifest_keys(store),
        folders,
        sorted(p.name for p in store.tmp.iterdir()),
        sorted(p.name for p in (store.locks / "builds").iterdir()),
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    home = tmp_path_factory.mktemp("crash")
    scenario.prepare(home / "prepared")
    root, counted = home / "whole", home / "calls"
    copy(home / "prepared", root)
    begun = time.perf_counter()
    assert subprocess.run(command(root, home / "log")).returncode == 0
    seconds = time.perf_counter() - begun
    assert sorted((home / "log").read_text().split()) == sorted(
        f"{which}/{part}" for which in ("between", "new") for part in scenario.PARTS[which]
    )
    calls: Counter[str] = Counter()
    if shutil.which("strace"):
        copy(home / "prepared", home / "counted")
        trace = strace("-o", str(counted), "-e", f"trace={','.join(CALLS)}")
        subprocess.run([*trace, *command(home / "counted", home / "log2")], check=True)
        for line in counted.read_text().splitlines():
            name = line.split(maxsplit=1)[-1].partition("(")[0]
            calls[name] += name in CALLS
    return Bench(home / "prepared", outcome(open_store(root)), dict(calls), seconds)


def copy(source: Path, destination: Path) -> None:
    """With its times and hard links, as a backup would be."""
    subprocess.run(["cp", "-a", str(source), str(destination)], check=True)


def check_and_resume(bench: Bench, root: Path, log: Path) -> None:
    """What must hold after any disturbance of a run."""
    store = open_store(root)
    report = verify.verify(store)
    assert report.is_clean, [finding.message for finding in report.findings]
    view = store.models / "m"
    known = [m for m in (scenario.manifest_of(which, store) for which in ("old", "new")) if m is not None]
    assert any(views.is_current(store, view, manifest) for manifest in known)
    done = log.read_text().split() if log.exists() else []
    again: list[str] = []
    scenario.run(root, again.append)
    assert not set(done) & set(again), "a finished block was made again"
    assert outcome(store) == bench.outcome
    assert verify.verify(store).is_clean


def points(bench: Bench) -> list[tuple[str, int, str]]:
    return [
        (call, when, fault)
        for call, count in sorted(bench.calls.items())
        for when in range(1, count + 1)
        for fault in FAULTS
    ]


def inject(bench: Bench, root: Path, call: str, when: int, fault: str) -> int:
    """Runs the scenario with one fault; its exit code."""
    copy(bench.prepared, root)
    trace = strace("-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={when}")
    done = subprocess.run([*trace, *command(root, root.with_suffix(".log"))], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@needs_strace
@pytest.mark.parametrize(
    "share", [pytest.param(24, id="some"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
def test_every_system_call_may_fail_or_be_the_last(
    bench: Bench, tmp_path: Path, share: int | None, seed: int
) -> None:
    tried = points(bench)
    assert len(tried) > 150
    if share is not None:
        tried = random.Random(seed).sample(tried, share)
    table: Counter[tuple[str, str, str]] = Counter()
    for n, (call, when, fault) in enumerate(tried):
        root = tmp_path / f"s{n}"
        code = inject(bench, root, call, when, fault)
        allowed = (-signal.SIGKILL, 128 + signal.SIGKILL) if "SIGKILL" in fault else (0, 2)
        assert code in allowed, (call, when, fault, code)
        try:
            check_and_resume(bench, root, root.with_suffix(".log"))
        except Exception as error:
            error.add_note(f"at {call} number {when} with {fault} (exit code {code})")
            raise
        table[call, fault, {0: "went on", 2: "refused"}.get(code, "killed")] += 1
        shutil.rmtree(root)
    for (call, fault, end), count in sorted(table.items()):
        print(f"{call:10} {fault:15} {end:8} {count}")


@pytest.mark.parametrize(
    "runs", [pytest.param(10, id="some"), pytest.param(300, id="many", marks=pytest.mark.slow)]
)
def test_kill_at_any_moment(bench: Bench, tmp_path: Path, runs: int, seed: int) -> None:
    chance = random.Random(seed)
    for n in range(runs):
        root = tmp_path / f"s{n}"
        log = root.with_suffix(".log")
        copy(bench.prepared, root)
        process = subprocess.Popen(command(root, log))
        for _ in range(chance.randrange(1, 3)):
            time.sleep(chance.uniform(0.2, 1.0) * bench.seconds)
            process.kill()
            process.wait()
            if chance.random() < 0.5:  # killed again while it resumes
                process = subprocess.Popen(command(root, log))
        process.kill()
        process.wait()
        done = log.read_text().split() if log.exists() else []
        assert len(done) == len(set(done)), "a finished block was made again"
        check_and_resume(bench, root, log)
        shutil.rmtree(root)


def test_runs_at_once_make_each_block_once(bench: Bench, tmp_path: Path) -> None:
    for n in range(6):
        root = tmp_path / f"s{n}"
        copy(bench.prepared, root)
        logs = [tmp_path / f"{n}-{i}.log" for i in range(3)]
        running = [subprocess.Popen(command(root, log)) for log in logs]
        assert [process.wait() for process in running] == [0, 0, 0]
        made = [name for log in logs if log.exists() for name in log.read_text().split()]
        assert len(made) == len(set(made)) == 5
        assert outcome(open_store(root)) == bench.outcome
        assert verify.verify(open_store(root)).is_clean


@needs_strace
@pytest.mark.slow
def test_gc_beside_a_build_that_is_stopped_at_each_call(bench: Bench, tmp_path: Path) -> None:
    """SIGSTOP before each call, gc with no grace that knows only the new target's key, SIGCONT."""
    collected = waited = 0
    for n, (call, when) in enumerate(sorted({(call, when) for call, when, _ in points(bench)})):
        root = tmp_path / f"s{n}"
        copy(bench.prepared, root)
        store = open_store(root)
        fault = f"inject={call}:signal=SIGSTOP:when={when}"
        said = root.with_suffix(".trace")
        trace = ["strace", "-f", "-o", str(said), "-e", f"trace={call}", "-e", fault]
        process = subprocess.Popen([*trace, *command(root, root.with_suffix(".log"))])
        child = stopped_child(process, said)
        if child is not None:
            if is_free(store.locks / "gc"):
                plan = gc.plan_gc(
                    inventory.survey(store),
                    [scenario.target_key("new")],
                    gc.Policy(grace_s=0),
                    time.time_ns(),
                )
                gc.apply_gc(store, plan)
                collected += 1
            else:
                waited += 1
            os.kill(child, signal.SIGCONT)
        assert process.wait() == 0, (call, when)
        assert verify.verify(store).is_clean
        again: list[str] = []
        scenario.run(root, again.append)
        assert again == [], (call, when)
        manifest = scenario.manifest_of("new", store)
        assert manifest is not None
        assert views.is_current(store, store.models / "m", manifest)
        shutil.rmtree(root)
    print(f"gc ran at {collected} stops; at {waited} the build held gc's lock")
    assert collected > 50


def stopped_child(process: subprocess.Popen[bytes], said: Path) -> int | None:
    """The traced process once strace says that it is stopped; None when it ended instead."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        for line in said.read_text().splitlines() if said.exists() else ():
            if line.endswith("--- stopped by SIGSTOP ---"):
                return int(line.split()[0])
        time.sleep(0.002)
    return None


def is_free(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
