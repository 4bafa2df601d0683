"""`from builder import Project`: what the commands do, from Python."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import builder
from builder import BuildError, NotBuilt, Project, silent
from builder.console.events import PassStarted
from tests.commands.test_daily import measured_project
from tests.conftest import Sandbox


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = measured_project(tmp_path_factory.mktemp("api") / "project")
    former = Path.cwd()
    os.chdir(made.root)
    yield made
    os.chdir(former)


def test_what_the_package_gives() -> None:
    assert set(builder.__all__) <= set(dir(builder))
    with pytest.raises(AttributeError, match="no attribute 'Porject'"):
        _ = builder.Porject


def test_a_day(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, build, measure, find the threshold, release, report, verify, collect: in this order."""
    project = Project()
    assert repr(project) == f"<Project {box.toml}: 1 models, 3 targets>"
    assert project.plan().passes[0].estimated
    with pytest.raises(NotBuilt, match="m_4bit is not built"):
        project.path("m_4bit")
    with pytest.raises(BuildError, match="m stands for several targets"):
        project.path("m")
    with pytest.raises(BuildError, match="no target"):
        project.path("m_7bit")
    assert project.results() == []

    said: list[object] = []
    (built,) = project.build("m_5bit", emit=said.append)
    assert built.name == "m_5bit"
    assert any(isinstance(event, PassStarted) for event in said)
    assert project.path("m_5bit") == box.view("m_5bit")
    assert project.path("base:tiny") == box.root / "base"

    records = project.evaluate("m_4bit", emit=silent)
    assert {record["target"] for record in records} == {"m_4bit"}
    kl = next(record for record in records if record["figure"] == "kl")
    assert (kl["suite"], kl["required"], kl["holds"]) == ("fidelity", "<= 100", True)
    assert all(
        isinstance(value, str | int | float | bool | None) for each in records for value in each.values()
    )
    assert len({tuple(record) for record in records}) == 1  # the same keys: one line makes a table
    json.dumps(records)
    assert project.results() == records

    found = project.threshold(emit=silent)
    assert found.search.found == "m_4bit"
    assert found.built == ()  # it was known
    assert project.release(emit=silent) == "m_4bit"
    assert json.loads(box.doit("status", "--json").out)["released"] == {"production": "m_4bit"}
    assert project.release(emit=silent) == "m_4bit"
    written = project.report(out="page")
    assert Path("page/index.html") in written
    assert Path("page/index.html").is_file()
    assert project.verify().is_clean
    assert project.gc(dry_run=True).is_empty
    html = project._repr_html_()
    assert "<td>m_4bit</td><td>built</td>" in html
    assert "<td>passes</td>" in html
    assert "<td>not kept</td>" in html

    below = box.root / "notebooks"
    below.mkdir()
    monkeypatch.chdir(below)
    assert Project().targets == project.targets
    assert "Project" in repr(Project("../artifacts.toml"))


def test_progress_is_shown_unless_it_is_switched_off(box: Sandbox) -> None:
    project = Project(box.toml)
    for emit, shown in ((None, True), (silent, False)):
        assert box.doit("clean:f16", "clean:production").code == 0
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            project.build("m_f16", emit=emit)
        assert ("m: f16:" in err.getvalue()) is shown


def test_a_missing_release_is_said(tmp_path: Path, box: Sandbox) -> None:
    other = tmp_path / "artifacts.toml"
    text = box.toml.read_text().split("[release]")[0]
    other.write_text(text.replace('path = "base"', f'path = "{box.root}/base"'))
    with pytest.raises(BuildError, match="declares no release"):
        Project(other).release()
