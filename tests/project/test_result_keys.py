"""The keys of what is measured: everything that can change a figure is in them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from builder.keys import Digest, Key
from builder.project import result_keys
from builder.project.project import Project
from builder.project.questions import QuestionsMissing
from builder.project.result_keys import measured_keys, reference_key, result_key, suite_key
from builder.spec.types import Condition, Metric, Model, Suite
from tests.toy import DECLARATION, make_toy, planned, prepared

SUITES = """suites = ["said", "own"]

[suite.said]
kind = "fidelity"
data = "rows.jsonl"

[suite.own]
kind = "command"
command = "python score.py --rows=rows.jsonl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    file = make_toy(tmp_path / "project", DECLARATION + SUITES)
    (file.parent / "rows.jsonl").write_text('{"messages": []}\n')
    (file.parent / "score.py").write_text("print({})")
    return prepared(file)


def said(project: Project) -> Suite:
    return project.spec.suites["said"]


# field of a suite -> another value, whether it can change a figure
FIELDS: dict[str, tuple[Any, bool]] = {
    "name": ("other", False),
    "kind": ("perplexity", True),
    "data": (None, True),
    "candidates": ({"a": "b"}, True),
    "answer": ("other", True),
    "where": ({"split": "test"}, True),
    "check": ("json", True),
    "max_tokens": (1, True),
    "top_k": (1, True),
    "window": (2, True),
    "batch": (1, False),
    "command": ("true", True),
    "timeout": (1, False),
    "part": ("search", True),
}
SAME_REFERENCE = ("part",)  # one reference serves all parts


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_of_a_suite(project: Project, name: str) -> None:
    value, counts = FIELDS[name]
    suite, plan = said(project), planned(project, "m_4bit")
    other = replace(suite, **{name: value})
    assert (suite_key(project, suite) != suite_key(project, other)) == counts
    assert (reference_key(project, plan, suite) != reference_key(project, plan, other)) == (
        counts and name not in SAME_REFERENCE
    )
    keys = [result_key(project, plan.target.model, plan.measured, each) for each in (suite, other)]
    assert (keys[0] != keys[1]) == counts


def test_every_field_of_a_suite_was_tried() -> None:
    assert {field.name for field in fields(Suite)} == FIELDS.keys()


def other_rows(suite: Suite) -> Suite:
    assert suite.data is not None
    suite.data.write_text('{"messages": [], "label": "yes"}\n')
    return suite


def read_as_text(suite: Suite) -> Suite:
    """The same bytes under a name that makes them one text."""
    assert suite.data is not None
    return replace(suite, data=suite.data.rename(suite.data.with_suffix(".txt")))


@pytest.mark.parametrize("change", [other_rows, read_as_text])
def test_the_questions_count_and_how_they_are_read(
    project: Project, change: Callable[[Suite], Suite]
) -> None:
    suite = said(project)
    before = suite_key(project, suite)
    assert suite_key(project, change(suite)) != before


def test_where_the_questions_lie_does_not_count(project: Project) -> None:
    suite = said(project)
    assert suite.data is not None
    before = suite_key(project, suite)
    moved = replace(suite, data=suite.data.rename(suite.data.with_name("elsewhere.jsonl")))
    assert suite_key(project, moved) == before


@pytest.mark.parametrize("name", ["score.py", "rows.jsonl"])
def test_the_files_that_a_command_names_count(project: Project, name: str) -> None:
    suite = project.spec.suites["own"]
    before = suite_key(project, suite)
    (project.spec.file.parent / name).write_text("other")
    assert suite_key(project, suite) != before


@pytest.mark.parametrize(
    ("suite", "metric", "timed"),
    [
        ("own", "seconds", True),
        ("own", "memory", True),
        ("own", "tokens_per_second", True),
        ("own", "accuracy", False),
        ("said", "seconds", False),
        ("other", "seconds", False),
    ],
)
def test_the_machine_counts_where_a_time_or_a_memory_is_required(
    project: Project, monkeypatch: pytest.MonkeyPatch, suite: str, metric: str, timed: bool
) -> None:
    plan = planned(project, "m_4bit")
    condition = Condition(Metric(suite, metric), "<", 3)

    def keys(model: Model) -> list[Key]:
        return [result_key(project, model, plan.measured, each) for each in project.spec.suites.values()]

    model = replace(plan.target.model, require=(condition,))
    here = keys(model)
    monkeypatch.setattr(result_keys, "machine_name", lambda: "another machine")
    assert (keys(model) != here) == timed
    assert keys(plan.target.model) == keys(replace(plan.target.model, require=(condition,))) or timed


def test_a_result_is_of_what_can_change_a_figure(project: Project) -> None:
    four, eight = planned(project, "m_4bit"), planned(project, "m_8bit")
    suite, model = said(project), four.target.model
    assert result_key(project, model, four.measured, suite) != result_key(
        project, model, eight.measured, suite
    )
    other = replace(model, name="other", variants=("8bit",))
    assert result_key(project, other, four.measured, suite) == result_key(
        project, model, four.measured, suite
    )


def test_a_reference_is_of_the_unquantized_model(project: Project) -> None:
    """One for all variants, whatever they are called."""
    suite, plan = said(project), planned(project, "m_4bit")
    key = reference_key(project, plan, suite)
    for name in ("m_f16", "m_8bit"):
        assert reference_key(project, planned(project, name), suite) == key
    base, adapter = plan.base, plan.adapter
    assert adapter is not None
    changed = [
        replace(plan, base=replace(base, identity=replace(base.identity, weights=Digest("8" * 64)))),
        replace(plan, base=replace(base, identity=replace(base.identity, prompts=Digest("8" * 64)))),
        replace(plan, adapter=replace(adapter, slices={"layers.1": Key("8" * 64)})),
        replace(plan, adapter=None),
    ]
    assert len({key, *(reference_key(project, each, suite) for each in changed)}) == 5
    same = [
        replace(plan, base=replace(base, identity=replace(base.identity, config=Digest("8" * 64)))),
        replace(plan, base=replace(base, identity=replace(base.identity, aux=()))),
        replace(plan, adapter=replace(adapter, digest=Digest("8" * 64))),  # other files, the same tensors
    ]
    assert {key, *(reference_key(project, each, suite) for each in same)} == {key}


def test_questions_that_are_missing_are_an_error_with_their_path(project: Project) -> None:
    suite, plan = said(project), planned(project, "m_4bit")
    assert suite.data is not None
    suite.data.unlink()
    with pytest.raises(QuestionsMissing, match=f"suite said: {suite.data}: No such file"):
        measured_keys(project, plan, suite)
