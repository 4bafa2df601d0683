"""docs/study is what docs/study_page.py writes from docs/study/report.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from builder.commands.report import write
from builder.report.document import document

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "docs/study"


@pytest.fixture
def study_page() -> ModuleType:
    place = importlib.util.spec_from_file_location("study_page", ROOT / "docs/study_page.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_committed_pages_are_made_from_the_committed_numbers(
    study_page: ModuleType, tmp_path: Path
) -> None:
    """The text only: another version of matplotlib draws other bytes."""
    written = write(study_page.report_of((STUDY / "report.json").read_text()), tmp_path)
    for made in (path for path in written if path.suffix == ".md"):
        assert made.read_text() == (STUDY / made.name).read_text()
    assert {path.name for path in written} | {"report.json"} == {path.name for path in STUDY.iterdir()}


def test_the_numbers_come_back_as_they_were(study_page: ModuleType) -> None:
    text = (STUDY / "report.json").read_text()
    for model, kept in zip(study_page.report_of(text).models, json.loads(text)["models"], strict=True):
        made = json.loads(json.dumps(document(model)))
        assert {name: made[name] for name in kept} == kept
