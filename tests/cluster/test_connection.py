"""What is refused before a job starts, each with one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from builder.cluster import connection
from builder.cluster.connection import ClusterMissing, ClusterUnreachable, NoWorkers, WorkersUnfit, connect
from builder.cluster.worker import NoPlaceToPublish, OtherInputs, OtherVersions
from builder.commands.main import _behind
from builder.commands.run import OneClient
from builder.console.events import silent
from tests.cluster.machines import Machines
from tests.commands.test_status import make_project
from tests.conftest import Sandbox
from tests.tiny import DECLARATION


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterMissing, match='the extra "cluster"'):
        connect("tcp://127.0.0.1:1", silent)


def test_the_option_may_stand_before_the_command() -> None:
    address = "tcp://h:1"
    assert _behind(["--cluster", address, "build", "a"]) == ["build", "--cluster", address, "a"]
    assert _behind([f"--cluster={address}", "eval", "a"]) == ["eval", f"--cluster={address}", "a"]
    assert _behind(["--cluster", address, "threshold:m"]) == ["build", "--cluster", address, "threshold:m"]
    assert _behind(["--cluster", address]) == ["build", "--cluster", address]


@pytest.mark.slow
def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_S", 1.0)
    with pytest.raises(ClusterUnreachable, match="tcp://127.0.0.1:1 cannot be used") as found:
        connect("tcp://127.0.0.1:1", silent)
    assert "Traceback" not in str(found.value)
    with pytest.raises(ClusterUnreachable):
        connect("nonsense://x", silent)


@pytest.mark.slow
def test_workers_that_would_not_do_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_WORKERS_S", 1.0)
    with Machines(tmp_path / "machines") as machines:
        with pytest.raises(NoWorkers, match=f"scheduler at {machines.address}"):
            connect(machines.address, silent)
        monkeypatch.setattr(connection, "_WORKERS_S", 60.0)
        limited = machines.other_worker(tmp_path, "--name", "small", "--memory-limit", "1GB")
        with pytest.raises(WorkersUnfit) as unfit:
            connect(machines.address, silent)
        assert "small has no resource pass=1" in unfit.value.message
        assert "small has a memory limit" in unfit.value.message
        limited.kill()
        limited.wait()
    with Machines(tmp_path / "others") as machines:
        preload = {
            "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps(
                [str(Path(__file__).with_name("old_versions.py"))]
            )
        }
        machines.worker(tmp_path, "old", preload)
        with pytest.raises(OtherVersions, match="old has mlx-lm 0.1, this machine mlx-lm 0."):
            connect(machines.address, silent)


@pytest.mark.slow
def test_a_worker_that_cannot_publish_is_refused_before_the_start(tmp_path: Path) -> None:
    box = make_project(tmp_path / "client")
    other = make_project(tmp_path / "other")
    with Machines(tmp_path / "machines") as machines:
        machines.worker(other.root, "far")
        ran = box.builder("build", "m_4bit", "--cluster", machines.address)
    assert ran.code == 2, ran.text
    assert "far: it has another store, and no remote is declared" in ran.err
    assert "Traceback" not in ran.err
    assert not box.view("m_4bit").exists()


def test_processes_and_a_cluster_are_not_mixed(sandbox: object) -> None:
    assert callable(sandbox)
    box: Sandbox = sandbox(DECLARATION)
    ran = box.doit("-n", "2", "--cluster", "tcp://127.0.0.1:1", "model:m_4bit")
    assert ran.code == OneClient.exit_code == 3
    assert "-n starts processes on this machine" in ran.err


def test_every_error_says_what_to_do() -> None:
    for kind in (NoPlaceToPublish, OtherInputs, OtherVersions, WorkersUnfit, NoWorkers):
        assert kind.hint
