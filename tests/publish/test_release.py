"""A release publishes what it shows, and a rollback takes it back."""

from __future__ import annotations

from pathlib import Path

from builder.project.project import Project
from builder.store import views
from tests.conftest import make_sandbox
from tests.toy import DECLARATION, build, make_toy, prepared

PUBLISH = """
[release]
production = "m_4bit"
publish = ["disk"]

[publish.disk]
target = "production"
to = "out"
"""


def shows(root: Path, target: str) -> bool:
    view = root / "store/models" / target
    weights = sorted(path.name for path in view.glob("*.safetensors"))
    return all((root / "out" / name).read_bytes() == (view / name).read_bytes() for name in weights)


def test_published_with_the_release_and_taken_back(tmp_path: Path) -> None:
    plain = DECLARATION.replace('[model.m]\nadapter = "tuned"', '[model.m]\nbase = "toy"')
    box = make_sandbox(tmp_path / "project", plain + PUBLISH)
    project = prepared(make_toy(box.root, plain + PUBLISH))
    build(project, "m_4bit")
    build(project, "m_8bit")
    early = box.doit("publish:disk")
    assert early.code == 1
    assert "production is not published: nothing is released" in early.text
    first = box.doit("release:production")
    assert first.code == 0, first.text
    assert "production is now m_4bit" in first.err
    assert shows(box.root, "m_4bit")
    again = box.doit("release:production")
    assert "has m_4bit already" in again.err
    assert "production is now" not in again.err
    box.edit('production = "m_4bit"', 'production = "m_8bit"')
    assert box.doit("release:production").code == 0
    assert shows(box.root, "m_8bit")
    back = box.doit("rollback:production")
    assert back.code == 0, back.text
    assert shows(box.root, "m_4bit")
    assert views.current_name(Project.load(box.toml).store.models / "production") == "m_4bit"
    assert "# m_4bit" in (box.root / "out/README.md").read_text()
