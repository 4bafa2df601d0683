"""models/production: moves only to what passes, keeps the former, is never lost to gc, cleaning or a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.store import releases, views
from builder.store.care import verify
from builder.store.format import open_store
from tests import store_scenario as scenario
from tests.conftest import ROOT, Sandbox
from tests.evaluate.test_run import project
from tests.tiny import DECLARATION, make_adapter, make_base

RELEASE = '\n[release]\nproduction = "m_4bit"\n'


@pytest.fixture
def box(sandbox: Callable[[str], Sandbox]) -> Sandbox:
    made = sandbox(DECLARATION + RELEASE)
    make_base(made.root / "base")
    make_adapter(made.root / "adapter")
    return made


def shown(box: Sandbox) -> dict[str, str]:
    said: dict[str, str] = json.loads(box.doit("status", "--json").out)["released"]
    return said


def test_released_moved_and_rolled_back(box: Sandbox) -> None:
    first = box.doit("release:production")
    assert first.code == 0, first.text
    assert "production is now m_4bit" in first.err
    assert "m_4bit is released unmeasured: [model.m.require] names no condition" in first.err
    assert shown(box) == {"production": "m_4bit"}
    assert box.doit("release:production").out.endswith("-- release:production\n")
    box.edit('production = "m_4bit"', 'production = "m_5bit"')
    assert box.doit("release:production").code == 0
    assert shown(box) == {"production": "m_5bit", "production.former": "m_4bit"}
    assert "production is m_5bit" in box.doit("status").out
    assert "production is now m_4bit" in box.doit("rollback:production").err
    assert shown(box) == {"production": "m_4bit", "production.former": "m_5bit"}
    assert box.doit("rollback:production").code == 0
    assert shown(box) == {"production": "m_5bit", "production.former": "m_4bit"}


def test_neither_gc_nor_cleaning_takes_what_is_released(box: Sandbox) -> None:
    assert box.doit("release:production").code == 0
    box.edit('production = "m_4bit"', 'production = "m_5bit"')
    assert box.doit("release:production").code == 0
    assert box.doit("clean:m_5bit", "clean:m_4bit").code == 0
    text = box.toml.read_text()
    box.toml.write_text(text[: text.index("[release]")].replace('"4bit", "5bit"', '"8bit"') + EIGHT)
    assert box.doit("gc", "--grace", "0").code == 0
    store = open_store(box.root / "store")
    assert set(releases.released(store)) == {"production", "production.former"}
    for name, key in releases.released(store).items():
        folder = store.models / name
        assert views.is_current(store, folder, releases.manifest_of(store, folder, key))
    assert verify.verify(store).is_clean
    assert box.doit("status").code == 1


EIGHT = "[variant.8bit]\nbits = 8\n"


def test_taken_away_by_name_it_is_garbage(box: Sandbox) -> None:
    assert box.doit("release:production").code == 0
    assert box.doit("clean:production").code == 0
    assert shown(box) == {}
    assert (box.root / "store/models/m_4bit").is_dir()


def test_a_target_that_misses_is_not_released(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    box.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["routing"]')
    box.toml.write_text(box.toml.read_text() + RELEASE)
    assert box.doit("release:production").code == 0
    before = (box.root / "store/models/production/artifact.toml").read_bytes()
    box.edit('production = "m_4bit"', 'production = "m_5bit"')
    box.edit('"routing.accuracy" = ">= 0"', '"routing.accuracy" = ">= 1.5"')
    refused = box.doit("release:production")
    assert refused.code == 1
    assert "m_5bit does not meet its requirements: routing.accuracy >= 1.5: measured" in refused.text
    alone = box.doit("run", "--single", "release:production")
    assert alone.code == 1
    assert "m_5bit is not released: routing.accuracy >= 1.5: measured" in alone.text
    assert (box.root / "store/models/production/artifact.toml").read_bytes() == before


def test_nothing_to_go_back_to(box: Sandbox) -> None:
    ran = box.doit("rollback:production")
    assert ran.code == 1
    assert "there is no former release to go back to." in ran.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m_6bit", 'production = "m_6bit" is not a target; did you mean'),
        ("zzz", 'production = "zzz" is not a target (possible: '),
    ],
)
def test_an_unknown_target(box: Sandbox, name: str, said: str) -> None:
    box.edit('production = "m_4bit"', f'production = "{name}"')
    ran = box.doit("list")
    assert ran.code == 3
    assert said in ran.text


MOVE = """
import sys
from pathlib import Path
from builder.store import releases
from builder.store.format import open_store
from tests import store_scenario as scenario
store = open_store(Path(sys.argv[1]))
releases.move(store, "production", scenario.manifest_of("new", store))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the kills")
def test_killed_at_any_moment_it_shows_the_old_or_the_new(tmp_path: Path) -> None:
    """SIGKILL at every rename, exchange, link, fsync and unlink of a move."""
    store = open_store(tmp_path / "store")
    scenario.prepare(store.root)
    scenario.run(store.root, lambda name: None)
    old = scenario.manifest_of("old", store)
    if old is None:  # the scenario's gc took it: release what is there under two names
        scenario.build(store, "old", lambda name: None)
        old = scenario.manifest_of("old", store)
    new = scenario.manifest_of("new", store)
    assert old is not None
    assert new is not None
    releases.move(store, "production", old)
    calls = ("rename", "renameat2", "link", "linkat", "fsync", "unlink", "ioctl", "mkdir")
    command, env = [sys.executable, "-c", MOVE], {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    for call in calls:
        for when in range(1, 40):
            root = tmp_path / f"{call}{when}"
            subprocess.run(["cp", "-a", str(store.root), str(root)], check=True)
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
            trace += ["-e", f"inject={call}:signal=KILL:when={when}"]
            done = subprocess.run([*trace, *command, str(root)], cwd=tmp_path, env=env, capture_output=True)
            here = open_store(root)
            folders = [here.models / name for name in ("production", "production.former")]
            assert any(views.is_current(here, folders[0], manifest) for manifest in (old, new)), (call, when)
            assert any(views.is_current(here, folder, old) for folder in folders), (call, when)
            releases.move(here, "production", new)
            assert views.is_current(here, folders[0], new)
            shutil.rmtree(root)
            if done.returncode == 0:
                break
            killed += 1
    assert killed >= 8


def test_gc_keeps_what_the_unquantized_model_said(sandbox: Callable[[str], Sandbox]) -> None:
    box = project(sandbox)
    box.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["fidelity"]')
    box.edit('"routing.accuracy" = ">= 0"', '"fidelity.kl" = ">= 0"')
    first = box.doit("eval:m_4bit")
    assert "measuring the unquantized m for fidelity" in first.err, first.text
    assert box.doit("gc", "--grace", "0").code == 0
    second = box.doit("eval:m_5bit")
    assert second.code == 0, second.text
    assert "measuring the unquantized" not in second.err
