"""A real cluster of dask on loopback: the bytes of one machine, no block twice, a worker that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Machines
from tests.commands.test_status import make_project
from tests.conftest import PATIENCE, ROOT, Sandbox, wait_until

REMOTE = '\n[remote.team]\nurl = "../remote"\n'
TARGETS = ("m_4bit", "m_5bit")
BLOCKS = 11  # of both, one of them shared


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """What one machine makes."""
    box = make_project(tmp_path_factory.mktemp("alone") / "project")
    assert box.builder("build", *TARGETS).code == 0
    return box


@pytest.fixture
def client(tmp_path: Path) -> Sandbox:
    """A checkout with a remote that has a store."""
    box = make_project(tmp_path / "client")
    box.toml.write_text(box.toml.read_text() + REMOTE)
    assert box.builder("remote", "init").code == 0
    return box


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path / "machines") as found:
        yield found


def counting(folder: Path, pause: float = 0) -> dict[str, str]:
    """The environment of workers that note which blocks they compute."""
    preload = json.dumps([str(Path(__file__).with_name("counted.py"))])  # not imported here
    count = {"KILN_TEST_COUNT": str(folder / "count"), "KILN_TEST_PAUSE": str(pause)}
    return {"DASK_DISTRIBUTED__WORKER__PRELOAD": preload, **count}


def computed(folder: Path) -> Counter[str]:
    """How often each block was computed, by any worker."""
    try:
        return Counter(line.split()[1] for line in (folder / "count").read_text().splitlines())
    except FileNotFoundError:
        return Counter()


def weights(box: Sandbox, target: str) -> dict[str, bytes]:
    """All files but those that say when and where."""
    said = ("artifact.toml", "README.md")
    return {f.name: f.read_bytes() for f in box.view(target).iterdir() if f.name not in said}


@pytest.mark.slow
def test_a_cluster_makes_the_bytes_of_one_machine(
    alone: Sandbox, client: Sandbox, machines: Machines, tmp_path: Path
) -> None:
    """Two workers with stores of their own publish into a folder. No block is made twice, none here."""
    for name in ("one", "two"):
        machines.worker(client.clone(name).root, name, counting(tmp_path))
    ran = client.builder("--cluster", machines.address, "build", *TARGETS)
    assert ran.code == 0, ran.text
    for target in TARGETS:
        assert weights(client, target) == weights(alone, target)
    made = computed(tmp_path)
    assert len(made) == BLOCKS
    assert set(made.values()) == {1}
    assert f"{BLOCKS} made" in ran.err
    assert "to make" not in ran.err  # no pass ran here


@pytest.mark.slow
def test_a_killed_worker_costs_its_unfinished_blocks(
    alone: Sandbox, client: Sandbox, machines: Machines, tmp_path: Path
) -> None:
    """kill -9 in the middle of a run of blocks: what it had finished is not made again."""
    env = counting(tmp_path, pause=0.4)
    victim = machines.worker(client.clone("one").root, "one", env)
    running = start(client, machines.address)
    wait_until(lambda: sum(computed(tmp_path).values()) >= 3, running)
    machines.worker(client.clone("two").root, "two", env)
    victim.kill()
    before = set(computed(tmp_path))
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, out + err
    made = computed(tmp_path)
    assert len(made) == BLOCKS
    again = {key for key, times in made.items() if times > 1}
    assert again <= before
    assert len(again) <= 4, "what was computed but not yet published when it died: a block of two variants"
    for target in TARGETS:
        assert weights(client, target) == weights(alone, target)


@pytest.mark.slow
def test_ctrl_c_cancels_and_says_what_is_kept(client: Sandbox, machines: Machines, tmp_path: Path) -> None:
    """The workers stop at their next block. The same command goes on."""
    env = counting(tmp_path, pause=0.5)
    worker = machines.worker(client.clone("one").root, "one", env)
    running = start(client, machines.address)
    wait_until(lambda: sum(computed(tmp_path).values()) >= 2, running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, out + err
    assert "What workers finished is kept" in err
    assert "Traceback" not in err
    time.sleep(2.5)
    done = computed(tmp_path)
    time.sleep(2.5)
    assert computed(tmp_path) == done, "the worker goes on"
    assert len(done) < BLOCKS
    assert worker.poll() is None
    ran = client.builder("--cluster", machines.address, "build", *TARGETS)
    assert ran.code == 0, ran.text
    made = computed(tmp_path)
    assert len(made) == BLOCKS
    assert sum(made.values()) <= BLOCKS + 2, "a block that was computed and not written when it was cancelled"


@pytest.mark.slow
def test_workers_in_the_same_checkout_need_no_remote(
    alone: Sandbox, machines: Machines, tmp_path: Path
) -> None:
    """Four workers and one store. Progress of all of them is one stream of events."""
    box = make_project(tmp_path / "shared")
    for number in range(4):
        machines.worker(box.root, f"w{number}", counting(tmp_path, pause=0.2))
    while_starting = machines.address
    running = start(box, while_starting, "--progress", "json")
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, out + err
    made = computed(tmp_path)
    assert len(made) == BLOCKS
    assert set(made.values()) == {1}
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    spread = [(event["done"], event["total"]) for event in events if event["event"] == "Spread"]
    assert spread[-1][0] == spread[-1][1] > 0
    workers = {event["worker"] for event in events if event["event"] == "Working"}
    assert workers <= {"w0", "w1", "w2", "w3"}
    assert workers
    for target in TARGETS:
        assert weights(box, target) == weights(alone, target)


def start(box: Sandbox, address: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "builder.commands.main", "build", "--cluster", address, *options, *TARGETS],
        cwd=box.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
