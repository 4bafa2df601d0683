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

from builder.console.events import Event, Note
from builder.evaluate import results
from builder.evaluate.results import Result
from builder.evaluate.statistics import Figure
from builder.project.project import Project
from builder.project.result_keys import result_key
from builder.release.production import (
    NoFormer,
    ReleaseRefused,
    is_current,
    release,
    rollback,
    withdraw,
)
from builder.store import blobs, releases, views
from builder.store.care import verify
from builder.store.format import open_store
from tests import store_scenario as scenario
from tests import toy as toys
from tests.conftest import ROOT, Sandbox
from tests.evaluate.test_run import project
from tests.tiny import DECLARATION, make_adapter, make_base
from tests.toy import build, make_toy, planned, prepared

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
    assert box.doit("release:production").out.endswith(
        "-- release:production\nproduction is m_4bit already\n"
    )
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
    assert "m_5bit misses its requirements: routing.accuracy >= 1.5: measured" in refused.text
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
releases.move(store, "production", scenario.manifest_of("new", store), "m")
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
    releases.move(store, "production", old, "m")
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
            releases.move(here, "production", new, "m")
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


# -- what is decided, with a store and without a model -------------------------------------------------------

REQUIRED = """suites = ["own"]

[model.m.require]
"own.accuracy" = ">= 0.9"
"own.seconds" = "< 3"

[suite.own]
kind = "command"
command = "./measure"
"""


def quiet(_: Event) -> None:
    pass


def toy(folder: Path, more: str = "") -> Project:
    return prepared(make_toy(folder / "project", toys.DECLARATION + more + RELEASE))


def again(project: Project) -> Project:
    return Project.load(project.spec.file)


def note(project: Project, **figures: float) -> None:
    """Results of the model's one suite, as an evaluation leaves them."""
    plan = planned(project, "m_4bit")
    key = result_key(project, plan.target.model, plan.measured, project.spec.suites["own"])
    values = {name: Figure(value, None, None, 1) for name, value in figures.items()}
    results.write(project.store, Result(key, "m_4bit", "own", "command", values))


def production_of(project: Project) -> dict[str, str | None]:
    """What each released folder is a view of; each is whole."""
    for name, key in releases.released(project.store).items():
        folder = project.store.models / name
        assert views.is_current(project.store, folder, releases.manifest_of(project.store, folder, key))
    return {
        name: views.current_name(project.store.models / name) for name in releases.released(project.store)
    }


def why_not(project: Project) -> str:
    """Why it is refused; whatever was released stays as it was."""
    before = production_of(project)
    with pytest.raises(ReleaseRefused) as caught:
        release(project, quiet)
    assert production_of(project) == before
    assert caught.value.hint_text == (
        "`doit eval:m_4bit` shows its figures. [model.m.require] says what they must be."
    )
    said = caught.value.message
    start, end = "m_4bit is not released: ", ". models/production has not changed."
    assert said.startswith(start)
    assert said.endswith(end)
    return said.removeprefix(start).removesuffix(end)


def test_what_is_not_built_is_not_released(tmp_path: Path) -> None:
    project = toy(tmp_path)
    assert not is_current(project)
    assert why_not(project) == "it is not built"
    build(project, "m_8bit")
    assert why_not(again(project)) == "it is not built"


def test_what_has_lost_a_blob_is_not_released(tmp_path: Path) -> None:
    project = toy(tmp_path)
    manifest = build(project, "m_4bit")
    blobs.path(project.store, manifest.files[0].blob.digest).unlink()
    assert why_not(again(project)) == "it is not built"


def test_without_its_sources_nothing_is_released(tmp_path: Path) -> None:
    project = toy(tmp_path)
    build(project, "m_4bit")
    shutil.rmtree(tmp_path / "project/base")
    project = again(project)
    assert why_not(project) == "its sources are missing"
    assert not is_current(project)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, "own.accuracy >= 0.9: not measured; own.seconds < 3: not measured"),
        ({"accuracy": 0.95}, "own.seconds < 3: not measured"),
        ({"accuracy": 0.75, "seconds": 2.5}, "own.accuracy >= 0.9: measured 0.75, misses by 0.15"),
        ({"accuracy": 0.9, "seconds": 3}, "own.seconds < 3: measured 3, misses by 0"),
        (
            {"accuracy": 0.75, "seconds": 4},
            "own.accuracy >= 0.9: measured 0.75, misses by 0.15; own.seconds < 3: measured 4, misses by 1",
        ),
        ({"accuracy": float("nan"), "seconds": 1}, "own.accuracy >= 0.9: measured nan, misses by nan"),
    ],
)
def test_what_misses_a_requirement_is_not_released(
    tmp_path: Path, figures: dict[str, float], said: str
) -> None:
    project = toy(tmp_path, REQUIRED)
    build(project, "m_4bit")
    if figures:
        note(project, **figures)
    assert why_not(project) == said


def test_what_meets_its_requirements_is_released_with_its_scores(tmp_path: Path) -> None:
    project = toy(tmp_path, REQUIRED)
    manifest = build(project, "m_4bit")
    note(project, accuracy=0.9, seconds=2.99)
    told: list[Event] = []
    release(project, told.append)
    assert told == []
    assert production_of(project) == {"production": "m_4bit"}
    assert is_current(project)
    folder = project.store.models / "production"
    assert views.is_current(project.store, folder, manifest)
    assert "| own.accuracy | 0.900 | - | 1 |" in (folder / "README.md").read_text()


def test_without_requirements_it_says_so(tmp_path: Path) -> None:
    project = toy(tmp_path)
    build(project, "m_4bit")
    told: list[Event] = []
    release(project, told.append)
    assert told == [Note("m_4bit is released unmeasured: [model.m.require] names no condition")]
    assert production_of(project) == {"production": "m_4bit"}


def released_twice(tmp_path: Path) -> Project:
    """Production is m_8bit, and was m_4bit."""
    project = toy(tmp_path)
    build(project, "m_4bit")
    build(project, "m_8bit")
    release(project, quiet)
    text = project.spec.file.read_text()
    project.spec.file.write_text(text.replace('production = "m_4bit"', 'production = "m_8bit"'))
    project = again(project)
    assert not is_current(project)  # another target is declared
    release(project, quiet)
    assert is_current(project)
    return project


def test_the_former_release_stays_beside_it(tmp_path: Path) -> None:
    project = released_twice(tmp_path)
    assert production_of(project) == {"production": "m_8bit", "production.former": "m_4bit"}
    release(project, quiet)  # again: nothing moves
    assert production_of(project) == {"production": "m_8bit", "production.former": "m_4bit"}


def test_back_and_forth(tmp_path: Path) -> None:
    project = released_twice(tmp_path)
    assert rollback(project) == "m_4bit"
    assert production_of(project) == {"production": "m_4bit", "production.former": "m_8bit"}
    assert not is_current(project)
    assert rollback(project) == "m_8bit"
    assert is_current(project)


def test_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    project = toy(tmp_path)
    build(project, "m_4bit")
    for released_before in (False, True):
        if released_before:
            release(project, quiet)
        with pytest.raises(NoFormer, match="there is no former release to go back to"):
            rollback(project)
        assert production_of(project) == ({"production": "m_4bit"} if released_before else {})


def test_withdrawn_both_are_gone_and_their_targets_stay(tmp_path: Path) -> None:
    project = released_twice(tmp_path)
    withdraw(project)
    assert production_of(project) == {}
    assert not is_current(project)
    assert sorted(path.name for path in project.store.models.iterdir()) == ["m_4bit", "m_8bit"]
    withdraw(project)  # once more is no error


def edit_a_file(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.unlink()
    file.write_text("[]")


def add_a_shard(folder: Path) -> None:
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"")


def other_adapter(folder: Path) -> None:
    toys.save_adapter(folder.parents[2] / "adapter", fill=1)


@pytest.mark.parametrize("change", [shutil.rmtree, edit_a_file, add_a_shard, other_adapter])
def test_a_release_that_does_not_show_what_is_declared(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    project = toy(tmp_path)
    build(project, "m_4bit")
    release(project, quiet)
    change(project.store.models / "production")
    assert not is_current(again(project))
