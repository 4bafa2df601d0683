"""What the repository promises about itself."""

from __future__ import annotations

import re
import tomllib

from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_both_lists_of_tested_versions_agree() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == PYPROJECT["tool"]["uv"]["constraint-dependencies"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", pin) for pin in pins)


def test_every_command_is_registered_in_both_places() -> None:
    from builder.commands import COMMANDS

    assert PYPROJECT["tool"]["doit"]["plugins"]["command"] == dict(COMMANDS)


LONG = {
    "builder/spec/fields.py": "a table of data: every key that may stand in artifacts.toml",
    "builder/engine/kernels/jitted.py": "what is compiled stays in one file",
}


def test_no_file_grew_past_its_reason() -> None:
    long = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "builder").rglob("*.py"), ROOT / "dodo.py"]
        if len(path.read_text().splitlines()) > 300
    }
    assert long == set(LONG)


def test_the_declaration_of_tasks_stays_small() -> None:
    assert len((ROOT / "dodo.py").read_text().splitlines()) <= 12
