"""publish:NAME as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import make_sandbox
from tests.toy import DECLARATION, build, make_toy, prepared

PUBLISH = """
[publish.disk]
target = "m_4bit"
to = "out"
"""


def test_shown_then_done_then_known(tmp_path: Path) -> None:
    plain = DECLARATION.replace('[model.m]\nadapter = "tuned"', '[model.m]\nbase = "toy"')
    box = make_sandbox(tmp_path / "project", plain + PUBLISH)
    root = box.root
    build(prepared(make_toy(root, plain + PUBLISH)), "m_4bit")

    shown = box.doit("publish:disk", "--dry-run")
    assert shown.code == 0, shown.text
    assert "m_4bit -> " in shown.out
    assert "# m_4bit" in shown.out
    assert not (root / "out").exists()
    as_json = box.builder("publish:disk", "--dry-run", "--json")
    document = json.loads(as_json.out)
    assert document["schema"] == "modelkiln/publish/1"
    planned = document["publications"][0]
    assert {file["action"] for file in planned["files"]} == {"send"}
    assert planned["bytes"] == sum(file["size"] for file in planned["files"])

    wrong = box.builder("build", "--dry-run", "m_4bit")
    assert wrong.code == 3
    assert '--dry-run is for publish:NAME, and "m_4bit" is another task.' in wrong.text
    assert "[NoDryRun]" in wrong.err
    unknown = box.builder("publish:dosk", "--dry-run")
    assert unknown.code == 3
    assert 'no publication "dosk"; did you mean "disk"?' in unknown.text
    assert "[NothingPublished]" in unknown.err

    done = box.builder("publish:disk", "--json")
    assert done.code == 0, done.text
    assert json.loads(done.out)["published"][0]["publication"] == "disk"
    assert (root / "out/config.json").exists()
    again = box.doit("publish:disk")
    assert "m_4bit already" in again.out, again.text
    assert "m_4bit is published unmeasured" in again.err
