"""The example's data is what its script makes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

EXAMPLE = ROOT / "example"


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", EXAMPLE / "make_data.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module
    spec.loader.exec_module(module)
    return module


def test_the_same_bytes_again(
    make_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(tmp_path)])
    make_data.main()
    assert len(capsys.readouterr().out.splitlines()) == 4
    for name in ("study", "train", "valid", "test"):
        made, kept = (folder / f"{name}.jsonl" for folder in (tmp_path, EXAMPLE / "data"))
        assert made.read_bytes() == kept.read_bytes(), name


def test_the_study_opens_the_test_set(make_data: ModuleType) -> None:
    rows = [json.loads(line) for line in (EXAMPLE / "data/test.jsonl").read_text().splitlines()]
    assert rows[:5] == make_data.make_data()["test"][:5]
    assert rows[0]["messages"][1]["content"] == "Find all Django view functions"
    assert len(rows) == 120
    assert {row["label"] for row in rows} == {"tool", "direct"}


def test_no_held_out_words_were_learned(make_data: ModuleType) -> None:
    import random
    import tomllib

    words = tomllib.loads((EXAMPLE / "words.toml").read_text())
    splits = make_data.split(words, random.Random(make_data.SEED))
    for kind in ("classes", "patterns", "concepts"):
        train, valid, test = (set(getattr(splits[name], kind)) for name in ("train", "valid", "test"))
        assert not train & valid and not train & test and not valid & test
