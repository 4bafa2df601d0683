"""The card in each view: true at the build, after a measurement, in a release; what it tells to run, runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Sandbox
from tests.evaluate.test_run import project
from tests.release.test_production import RELEASE


@pytest.fixture
def box(sandbox: Callable[[str], Sandbox]) -> Sandbox:
    made = project(sandbox)
    made.edit('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]', 'suites = ["routing"]')
    made.toml.write_text(made.toml.read_text() + RELEASE)
    return made


def card(box: Sandbox, name: str = "m_4bit") -> str:
    return (box.view(name) / "README.md").read_text()


def test_it_says_what_was_made_and_then_what_was_measured(box: Sandbox) -> None:
    assert box.doit("model:m_4bit").code == 0
    manifest = (box.view("m_4bit") / "artifact.toml").read_text()
    text = card(box)
    for name in ("key", "base_digest", "adapter_digest", "toolchain"):
        said = re.search(rf'^{name} = "(.*)"$', manifest, re.MULTILINE)
        assert said is not None
        assert said[1] in text, name
    assert "quantized to 4 bits" in text
    assert "Not measured." in text
    assert box.doit("eval:m_4bit").code == 0
    (found,) = box.root.glob("store/evals/*/*.json")
    figure = json.loads(found.read_text().split("\n")[0])["figures"]["accuracy"]
    row = re.search(r"\| routing.accuracy \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| 6 \|", card(box))
    assert row is not None
    assert re.search(r"^Measured 20\S+Z, on .+, with mlx .+, precision float32\.$", card(box), re.MULTILINE)
    expected = [figure[name] for name in ("value", "low", "high")]
    assert [float(value) for value in row.groups()] == pytest.approx(expected, abs=1e-3)


def test_it_is_no_reason_to_build_and_comes_back_with_its_scores(box: Sandbox) -> None:
    assert box.doit("eval:m_4bit").code == 0
    before = card(box)
    (box.view("m_4bit") / "README.md").write_text("edited\n")
    assert box.doit("model:m_4bit").out.endswith("-- model:m_4bit\n")
    subprocess.run(["rm", "-r", str(box.view("m_4bit"))], check=True)
    assert box.doit("model:m_4bit").code == 0
    assert card(box) == before


def test_a_release_has_it(box: Sandbox) -> None:
    assert box.doit("release:production").code == 0
    assert card(box, "production") == card(box)
    assert "routing.accuracy" in card(box, "production")


def test_what_it_tells_to_run_runs(box: Sandbox, tmp_path: Path) -> None:
    assert box.doit("model:m_4bit").code == 0
    python = re.search(r"```python\n(.*?)```", card(box), re.DOTALL)
    shell = re.search(r"^mlx_lm\.generate (.*)$", card(box), re.MULTILINE)
    assert python is not None
    assert shell is not None
    script = tmp_path / "load.py"
    script.write_text(python[1].replace("max_tokens=100", "max_tokens=2"))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=box.view("m_4bit"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = shell[1].replace("100", "2").replace('"', "").split()
    command = [sys.executable, "-m", "mlx_lm", "generate", *words]
    done = subprocess.run(command, cwd=box.view("m_4bit"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
