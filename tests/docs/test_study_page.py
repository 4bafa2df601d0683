"""docs/study and docs/frontier are what docs/study_page.py writes from the report.json in each of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from builder.commands.report import write
from builder.report.document import document

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("study", "frontier")


@pytest.fixture
def study_page() -> ModuleType:
    place = importlib.util.spec_from_file_location("study_page", ROOT / "docs/study_page.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FOLDERS)
def test_the_committed_pages_are_made_from_the_committed_numbers(
    study_page: ModuleType, tmp_path: Path, name: str
) -> None:
    """The text only: another version of matplotlib draws other bytes."""
    folder = ROOT / "docs" / name
    written = write(study_page.report_of((folder / "report.json").read_text()), tmp_path)
    for made in (path for path in written if path.suffix == ".md"):
        assert made.read_text() == (folder / made.name).read_text()
    assert {path.name for path in written} | {"report.json"} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_numbers_come_back_as_they_were(study_page: ModuleType, name: str) -> None:
    text = (ROOT / "docs" / name / "report.json").read_text()
    for model, kept in zip(study_page.report_of(text).models, json.loads(text)["models"], strict=True):
        made = json.loads(json.dumps(document(model)))
        assert {name: made[name] for name in kept} == kept
