"""An evaluation reads one build of its target from the first question to the last, and holds it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.console.events import Event
from builder.evaluate import run
from builder.evaluate.results import Result
from builder.evaluate.run import ChangedMeanwhile, evaluate, measured
from builder.evaluate.statistics import Figure
from builder.keys import Key
from builder.project.project import Project
from builder.project.state import target_state
from builder.release.delivery import clean
from builder.store import records, views
from builder.store.care import drop
from builder.store.types import Manifest
from tests.toy import DECLARATION, build, make_toy, planned, prepared, save_adapter

SUITES = """suites = ["own", "calls"]

[suite.own]
kind = "command"
command = "./measure"

[suite.calls]
kind = "exact"
data = "rows.jsonl"
"""
FIGURES = {"accuracy": Figure(0.9, None, None, 1)}
Meanwhile = Callable[[Project], object]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """m_4bit is built with another adapter, and then with the declared one."""
    file = make_toy(tmp_path / "project", DECLARATION + SUITES)
    (file.parent / "rows.jsonl").write_text("{}\n")
    save_adapter(file.parent / "adapter", fill=1)
    build(prepared(file), "m_4bit")
    save_adapter(file.parent / "adapter")
    project = prepared(file)
    build(project, "m_4bit")
    return Project.load(file)


def measuring(monkeypatch: pytest.MonkeyPatch, project: Project, meanwhile: Meanwhile, of: str) -> list[str]:
    """Replaces what measures. `meanwhile` happens while `of` is measured. Grows by what was measured."""
    asked: list[str] = []

    def command(suite: Any, *_: object) -> Mapping[str, Figure]:
        asked.append(suite.name)
        if of == suite.name:
            meanwhile(project)
        return FIGURES

    def ask(_: str, request: Mapping[str, Any], __: object) -> Mapping[str, Any]:
        names = [suite["name"] for suite in request["suites"]]
        asked.extend(names)
        if of in names:
            meanwhile(project)
        said = {"figures": {"rate": {"value": 1.0, "low": None, "high": None, "n": 1}}, "rows": {}}
        return {"results": dict.fromkeys(names, said), "made": {}}

    monkeypatch.setattr(run, "run_command", command)
    monkeypatch.setattr(run, "ask", ask)
    return asked


def measure(project: Project) -> dict[str, Result]:
    return evaluate(project, planned(project, "m_4bit"), quiet)


def quiet(_: Event) -> None:
    pass


def both(project: Project) -> tuple[Manifest, Manifest]:
    """(what the view shows, the former build)"""
    view = project.store.models / "m_4bit"
    shown = records.read_manifest(project.store, Key(str(views.current_key(view))))
    assert shown is not None
    (former,) = (m for m in records.manifests(project.store) if m.key != shown.key)
    return shown, former


def there_and_back(project: Project) -> None:
    """A -> B -> A: when it ends, the view shows what it showed in the beginning."""
    shown, former = both(project)
    for manifest in (former, shown):
        views.materialize(project.store, project.store.models / "m_4bit", manifest)


def another(project: Project) -> None:
    views.materialize(project.store, project.store.models / "m_4bit", both(project)[1])


def made_again(project: Project) -> None:
    """The same build, in another folder."""
    shown, _ = both(project)
    views.materialize(project.store, project.store.models / "m_4bit", shown)


def edited(project: Project) -> None:
    file = project.store.models / "m_4bit/tokenizer.json"
    file.unlink()
    file.write_text("[]")


def gone(project: Project) -> None:
    shutil.rmtree(project.store.models / "m_4bit")


@pytest.mark.parametrize("suite", ["own", "calls"])
@pytest.mark.parametrize("meanwhile", [there_and_back, another, made_again, edited, gone])
def test_a_view_that_changes_while_it_is_measured(
    project: Project, monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile, suite: str
) -> None:
    asked = measuring(monkeypatch, project, meanwhile, suite)
    with pytest.raises(ChangedMeanwhile) as caught:
        measure(project)
    assert "m_4bit changed while it was being measured" in caught.value.message
    known = measured(project, planned(project, "m_4bit"))
    assert suite not in known  # of what was measured before, nothing is lost
    assert set(known) == set(asked) - {suite}


def test_questions_that_change_while_they_are_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = project.spec.file.parent / "rows.jsonl"
    measuring(monkeypatch, project, lambda _: rows.write_text("{}\n{}\n"), "calls")
    with pytest.raises(ChangedMeanwhile, match="the questions of suite calls"):
        measure(project)
    assert "calls" not in measured(project, planned(project, "m_4bit"))


def cleaned(project: Project) -> None:
    other = Project.load(project.spec.file)
    told: list[Event] = []
    clean(other, ["m_4bit"], told.append)
    assert "m_4bit stay: a running build or evaluation needs" in str(told[-1])


def pruned(project: Project) -> None:
    plan = planned(project, "m_4bit")
    assert drop.drop(project.store, {"m_4bit": [plan.key]}, project.spec.file.parent).blobs == 0


@pytest.mark.parametrize("meanwhile", [cleaned, pruned])
def test_what_is_being_measured_is_not_cleaned(
    project: Project, monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile
) -> None:
    measuring(monkeypatch, project, meanwhile, "own")
    assert set(measure(project)) == {"own", "calls"}
    assert target_state(project.store, planned(project, "m_4bit")).built
    clean(project, ["m_4bit"], quiet)  # afterwards it goes
    assert target_state(project.store, planned(project, "m_4bit")).kind == "not built"


# -- results are of content, not of names --------------------------------------------------------------------


def test_results_are_found_again_after_a_rename(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, project, lambda _: None, "")
    found = measure(project)
    file = project.spec.file
    text = file.read_text().replace("[model.m]", "[model.n]").replace("[variant.4bit]", "[variant.four]")
    text = text.replace('"4bit"', '"four"').replace("[suite.own]", "[suite.mine]").replace('"own"', '"mine"')
    file.write_text(text)
    renamed = Project.load(file)
    plan = planned(renamed, "n_four")
    known = measured(renamed, plan)
    assert {name: result.figures for name, result in known.items()} == {
        {"own": "mine"}.get(name, name): result.figures for name, result in found.items()
    }
    build(renamed, "n_four")
    assert set(evaluate(renamed, plan, quiet)) == {"mine", "calls"}
    assert sorted(asked) == ["calls", "own"]  # nothing was asked again


def test_they_are_measured_again_when_that_is_asked_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measuring(monkeypatch, project, lambda _: None, "")
    measure(project)
    evaluate(project, planned(project, "m_4bit"), quiet, again=True)
    assert sorted(asked) == ["calls", "calls", "own", "own"]
