"""`doit -n 2` where processes are spawned (macOS) or come from a fork server (Python 3.14), not forked."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.project.project import Project
from builder.store.format import open_store
from builder.store.statcache import StatCache
from tests.build.test_one_pass import built
from tests.conftest import Sandbox
from tests.evaluate.test_run import ONLY_CALLS, watching
from tests.evaluate.test_run import project as with_suites
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
METHODS = ("spawn", "forkserver")
# As Python does it elsewhere: before doit runs, and not again in the processes that it starts.
START = """\
import multiprocessing
if multiprocessing.parent_process() is None:
    multiprocessing.set_start_method("{method}", force=True)
    print("processes start by", multiprocessing.get_start_method())
"""


def starting(box: Sandbox, method: str) -> Sandbox:
    dodo = box.root / "dodo.py"
    dodo.write_text(START.format(method=method) + dodo.read_text())
    return box


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_build_everything_once(sandbox: Make, method: str) -> None:
    box = starting(sandbox(DECLARATION), method)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    ran = box.doit("run", "-n", "2", "--progress", "json")
    assert ran.code == 0, ran.text
    assert f"processes start by {method}" in ran.out
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    blocks = sum(event["made"] for event in events if event["event"] == "BlockDone")
    assert blocks == 2 * BLOCKS - 1  # the two variants share the final norm
    assert {e["target"] for e in events if e["event"] == "TargetDone"} == {"m_4bit", "m_5bit"}
    assert "Traceback" not in ran.text
    assert built(box.doit("-n", "2")) == {}
    for target in ("m_4bit", "m_5bit"):
        assert (box.view(target) / "config.json").exists()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_named_is_known_in_every_process(sandbox: Make, method: str) -> None:
    """An intermediate that was asked for by name stays: its pin is set by the process that builds it."""
    box = starting(sandbox(DECLARATION), method)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    assert set(built(box.doit("-n", "2", "model:m_f16", "model:m_4bit"))) == {"m_f16", "m_4bit"}
    assert [pin.name for pin in (box.root / "store/pins").iterdir()] == ["m_f16"]


@pytest.mark.parametrize("method", METHODS)
def test_a_failure_in_another_process_is_said_in_one_line(sandbox: Make, method: str) -> None:
    box = starting(sandbox(DECLARATION), method)
    make_base(box.root / "base")
    folder = make_adapter(box.root / "adapter")
    (folder / "adapters.safetensors").write_bytes(b"not an adapter")
    ran = box.doit("-n", "2")
    assert ran.code == 1, ran.text
    assert "ERROR: adapter.tuned: " in ran.err
    assert "Traceback" not in ran.text


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_take_turns(sandbox: Make, method: str) -> None:
    box = starting(with_suites(sandbox), method)
    for edit in ONLY_CALLS:
        box.edit(*edit)
    assert box.doit("-n", "2", "model").code == 0
    note = "open('log', 'a').write"
    code = f"import atexit\n{note}('begins ')\natexit.register(lambda: {note}('ends '))"
    ran = box.doit("-n", "2", "eval", env=watching(box, code))
    assert ran.code == 0, ran.text
    assert (box.root / "log").read_text() == "begins ends " * 2
    assert ran.text.count("waiting for another evaluation to end") == 1


def test_a_cache_goes_to_another_process_without_its_connection(tmp_path: Path) -> None:
    cache = StatCache(open_store(tmp_path / "store"))
    cache.put("kind", "key", b"value")
    twin = pickle.loads(pickle.dumps(cache))
    assert twin.get("kind", "key") == b"value"
    twin.put("kind", "key", b"another")
    assert cache.get("kind", "key") == b"another"


def test_a_project_goes_to_another_process_without_its_plan(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    project = Project.load(box.toml)
    assert project.plan.targets
    assert project.seen is not None
    twin = pickle.loads(pickle.dumps(project))
    assert not {"plan", "keys", "known", "seen"} & twin.__dict__.keys()
    assert twin.plan.targets.keys() == project.plan.targets.keys()
