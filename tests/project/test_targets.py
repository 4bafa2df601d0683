"""The names that a person types for targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.project.project import Project
from builder.project.targets import UnknownTarget, find_targets
from tests.toy import DECLARATION, make_toy

PLAIN = '[model.plain]\nbase = "toy"\nvariants = ["f16", "4bit"]\n'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.load(make_toy(tmp_path / "project", DECLARATION + PLAIN))


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ([], ()),
        (["m_4bit"], ("m_4bit",)),
        (["model:m_4bit"], ("m_4bit",)),
        (["m"], ("m_4bit", "m_8bit")),  # intermediates only by their own name
        (["model:m"], ("m_4bit", "m_8bit")),
        (["m_f16"], ("m_f16",)),
        (["plain_4bit", "m"], ("plain_4bit", "m_4bit", "m_8bit")),  # in the order in which they were typed
        (["m_8bit", "m", "m_8bit", "model:m_8bit"], ("m_8bit", "m_4bit")),  # each once
    ],
)
def test_names_as_typed(project: Project, typed: list[str], found: tuple[str, ...]) -> None:
    assert find_targets(project, typed) == found


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("m_4bt", 'there is no target "m_4bt"; did you mean "m_4bit"?'),
        ("plian", 'there is no target "plian"; did you mean "plain"?'),
        ("model:m_4bt", 'there is no target "m_4bt"; did you mean "m_4bit"?'),
        (
            "zzz",
            'there is no target "zzz" (possible: m_f16, m_4bit, m_8bit, plain_f16, plain_4bit, m, plain)',
        ),
        ("", 'there is no target "" (possible: m_f16, m_4bit, m_8bit, plain_f16, plain_4bit, m, plain)'),
    ],
)
def test_unknown_names(project: Project, typed: str, said: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        find_targets(project, ["m_4bit", typed])
    assert caught.value.message == said
    assert caught.value.exit_code == 3


def test_nothing_is_declared(tmp_path: Path) -> None:
    project = Project.load(make_toy(tmp_path / "project", ""))
    with pytest.raises(UnknownTarget) as caught:
        find_targets(project, ["m"])
    assert caught.value.message == 'there is no target "m".'
