"""Suites and a search for the smallest target on real workers: the figures of one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Machines
from tests.commands.test_status import make_project
from tests.conftest import Sandbox
from tests.tiny import yes_or_no

SUITES = """
suites = ["routing", "fidelity"]

[model.m.require]
"routing.accuracy" = ">= 0"

[suite.routing]
kind = "choice"
data = "rows.jsonl"
candidates = { yes = "yes", no = "no" }

[suite.fidelity]
kind = "fidelity"
data = "rows.jsonl"

[remote.team]
url = "../remote"
"""


def figures(box: Sandbox) -> dict[str, Any]:
    """What is known of every target, without when and where."""
    found = {}
    for file in sorted((box.root / "store" / "evals").glob("*/*.json")):
        said = json.loads(file.read_text().partition("\n#")[0])
        found[said["target"], said["suite"]] = said["figures"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("names", [("one",), ("one", "two")], ids=["one round after the other", "at once"])
def test_a_search_measures_on_the_workers(tmp_path: Path, names: tuple[str, ...]) -> None:
    """threshold builds and measures there. The client finds the results, and eval has nothing to do."""
    client = make_project(tmp_path / "client")
    client.toml.write_text(client.toml.read_text() + SUITES)
    (client.root / "rows.jsonl").write_text(yes_or_no())
    assert client.builder("remote", "init").code == 0
    alone = client.clone("alone")
    with Machines(tmp_path / "machines") as machines:
        for name in names:
            machines.worker(client.clone(name).root, name)
        ran = client.builder("--cluster", machines.address, "threshold:m")
        assert ran.code == 0, ran.text
        assert "is the smallest" in ran.out
        assert "\nmeasuring" not in f"\n{ran.err}", "something was measured here"
        again = client.builder("--cluster", machines.address, "eval", "m_4bit", "m_5bit")
        assert again.code == 0, again.text
        assert "\nmeasuring" not in f"\n{again.err}"
    assert ran.err.count("measuring the unquantized m ") == 1, "what targets are compared with is made once"
    found = figures(client)
    assert ("m_4bit", "fidelity") in found
    ran = alone.builder("eval", "--no-remote", "m_4bit")
    assert ran.code == 0, ran.text
    assert ("m_4bit", "fidelity") in figures(alone)
    for key, value in figures(alone).items():
        assert found[key] == value
