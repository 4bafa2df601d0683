"""A new name for a model or a variant makes nothing again: what is there is shown under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.build import one_pass
from builder.console.events import Event
from builder.project.forecast import forecast
from builder.project.project import Project
from builder.project.roots import gc_plan
from builder.project.state import target_state
from builder.project.why import why
from builder.release.delivery import deliver
from builder.release.production import is_current, release
from builder.store import releases, views
from builder.store.care.gc import Policy, apply_gc
from builder.store.care.verify import verify
from tests.toy import DECLARATION, build, make_toy, planned, prepared

RELEASE = '\n[release]\nproduction = "m_4bit"\n'
NAMES = {
    "model": ("n_4bit", {"[model.m]": "[model.n]", '"m_4bit"': '"n_4bit"'}),
    "variant": ("m_four", {"[variant.4bit]": "[variant.four]", '"4bit"': '"four"', '"m_4bit"': '"m_four"'}),
    "base": ("m_4bit", {"[base.toy]": "[base.other]", '"toy"': '"other"'}),
    "adapter": ("m_4bit", {"[adapter.tuned]": "[adapter.other]", '"tuned"': '"other"'}),
}


def quiet(_: Event) -> None:
    pass


def renamed(file: Path, which: str) -> tuple[Project, str]:
    name, edits = NAMES[which]
    text = file.read_text()
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return Project.load(file), name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """m_4bit is built and released."""
    file = make_toy(tmp_path / "project", DECLARATION + RELEASE)
    project = prepared(file)
    build(project, "m_4bit")
    release(project, quiet)
    return file


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows when a base is opened."""
    opened: list[str] = []
    monkeypatch.setattr(one_pass, "open_stream", lambda *_: opened.append("opened"))
    return opened


@pytest.mark.parametrize("which", NAMES)
def test_nothing_is_made_again(file: Path, passes: list[str], which: str) -> None:
    before = Project.load(file)
    key, shown = before.keys["m_4bit"], (before.store.models / "m_4bit/artifact.toml").read_bytes()
    project, name = renamed(file, which)
    plan = planned(project, name)
    assert plan.key == key
    state = target_state(project.store, plan)
    assert state.kind == ("built" if name == "m_4bit" else "not shown")
    assert why(project, name).changes == ()
    assert forecast(project, [name]).passes == ()
    (result,) = deliver(project, name, {name}, (), quiet)
    assert (result.made, passes) == (0, [])
    assert (project.store.models / name / "artifact.toml").read_bytes() == shown
    assert Project.load(file).is_built(name)
    assert verify(project.store).findings == ()


@pytest.mark.parametrize("which", ["model", "variant"])
def test_the_old_name_goes_with_gc_and_the_bytes_stay(file: Path, passes: list[str], which: str) -> None:
    project, name = renamed(file, which)
    deliver(project, name, {name}, (), quiet)
    project = Project.load(file)
    plan = gc_plan(project, Policy(grace_s=0))
    assert ([view.name for view in plan.views], plan.manifests, plan.blobs) == (["m_4bit"], (), ())
    apply_gc(project.store, plan)
    assert sorted(path.name for path in project.store.models.iterdir()) == sorted([name, "production"])
    assert Project.load(file).is_built(name)


@pytest.mark.parametrize("which", ["model", "variant"])
def test_the_old_name_stays_while_its_new_one_is_not_there(file: Path, which: str) -> None:
    """Within its hour of grace, and while it is what can be loaded of an undeclared build."""
    project, _ = renamed(file, which)
    assert gc_plan(project, Policy()).views == ()


@pytest.mark.parametrize("which", ["model", "variant"])
def test_a_release_gets_the_new_name(file: Path, passes: list[str], which: str) -> None:
    project, name = renamed(file, which)
    assert not is_current(project)  # it still says the old one
    deliver(project, name, {name}, (), quiet)
    release(project, quiet)
    assert is_current(project)
    assert views.current_name(project.store.models / "production") == name
    assert set(releases.released(project.store)) == {"production"}  # the same bytes: nothing became former


def swapped(file: Path) -> None:
    """Two variants exchange their names."""
    text = (
        file.read_text().replace("[variant.4bit]", "[variant.x]").replace("[variant.8bit]", "[variant.4bit]")
    )
    file.write_text(text.replace("[variant.x]", "[variant.8bit]"))


def contents(project: Project, name: str) -> bytes:
    return (project.store.models / name / "artifact.toml").read_bytes()


def test_two_variants_exchange_their_names(file: Path, passes: list[str]) -> None:
    first = Project.load(file)
    build(first, "m_8bit")
    four, eight = contents(first, "m_4bit"), contents(first, "m_8bit")
    swapped(file)
    project = Project.load(file)
    assert {target_state(project.store, planned(project, n)).kind for n in ("m_4bit", "m_8bit")} == {
        "not shown"
    }
    results = deliver(project, "m_4bit", {"m_4bit", "m_8bit"}, (), quiet)
    assert sum(result.made for result in results) == 0
    assert passes == []
    assert (contents(project, "m_4bit"), contents(project, "m_8bit")) == (eight, four)
    assert verify(project.store).findings == ()
