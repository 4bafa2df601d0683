"""What there is of every target: each state from a store that is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from builder.project.project import Project
from builder.project.status import Status, status_of, survey, survival_of
from builder.store import blobs, records, views
from builder.store.care import drop
from builder.store.types import Manifest, Scalar
from tests.toy import (
    BLOCKS,
    DECLARATION,
    LEARNED,
    build,
    make_blocks,
    make_toy,
    planned,
    prepared,
    save_adapter,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "project")


def status(project: Project, name: str) -> Status:
    return status_of(project, project.spec.target(name))


def test_all_targets_in_the_order_of_the_file(file: Path) -> None:
    project = prepared(file)
    build(project, "m_8bit")
    rows = survey(project)
    assert [(row.target, row.state, row.due, row.intermediate) for row in rows] == [
        ("m_f16", "not kept", False, True),
        ("m_4bit", "not built", True, False),
        ("m_8bit", "built", False, False),
    ]
    assert [row.why for row in rows] == ["on demand", "never built", ""]
    assert {(row.score, row.misses) for row in rows} == {(None, ())}  # builder.evaluate.standing fills them


def test_a_target_that_was_never_built_shows_its_plan(file: Path) -> None:
    project = prepared(file)
    make_blocks(project, "m_4bit", 2)
    row, plan = status(project, "m_4bit"), planned(project, "m_4bit")
    assert (row.blocks, row.reused) == (len(BLOCKS), 2)
    assert row.size == plan.whole_size == plan.size + 2  # the tokenizer
    assert row.bits_per_weight == plan.bits_per_weight
    assert (row.built, row.survival) == (None, None)


def rewritten(project: Project, manifest: Manifest) -> None:
    """As if the target had been built like this in the first place."""
    records.manifest_path(project.store, manifest.key).unlink()
    records.write_manifest(project.store, manifest)
    views.materialize(project.store, project.store.models / manifest.name, manifest)


def test_a_built_target_shows_its_manifest(file: Path) -> None:
    project = prepared(file)
    make_blocks(project, "m_4bit", 1)
    manifest = build(project, "m_4bit")
    manifest = replace(manifest, measures={**manifest.measures, "survival_db": 12.25})
    rewritten(project, manifest)
    project = Project.load(file)
    row = status(project, "m_4bit")
    assert (row.size, row.built) == (manifest.size, manifest.created)
    assert (row.blocks, row.reused) == (3, 1)
    assert row.survival == 12.25


def test_an_older_manifest_is_completed_from_the_plan(file: Path) -> None:
    """Before blocks were measured, manifests had none of these figures."""
    project = prepared(file)
    rewritten(project, replace(build(project, "m_4bit"), measures={}))
    row, plan = status(Project.load(file), "m_4bit"), planned(project, "m_4bit")
    assert (row.state, row.bits_per_weight, row.blocks) == ("built", plan.bits_per_weight, 3)


def test_a_learned_target_is_made_whole(tmp_path: Path) -> None:
    file = make_toy(tmp_path / "project", DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + LEARNED)
    project = prepared(file)
    row = status(project, "m_dwq")
    assert (row.state, row.size, row.bits_per_weight, row.blocks, row.reused) == ("not built", *[None] * 4)
    manifest = build(project, "m_dwq")
    row = status(Project.load(file), "m_dwq")
    assert (row.state, row.size, row.bits_per_weight) == ("built", manifest.size, 4.5)
    assert (row.blocks, row.reused) == (None, None)


def without_view(project: Project) -> None:
    shutil.rmtree(project.store.models / "m_4bit")


def dropped(project: Project) -> None:
    drop.drop(project.store, {"m_4bit": [planned(project, "m_4bit").key]})


def one_blob_gone(project: Project) -> None:
    """The view still claims to show it."""
    record = records.read(project.store, planned(project, "m_4bit").actions[1].key)
    assert record is not None
    blobs.path(project.store, record.blob.digest).unlink()


def other_adapter(project: Project) -> None:
    save_adapter(project.spec.file.parent / "adapter", fill=1)


def other_bits_and_group(project: Project) -> None:
    text = project.spec.file.read_text()
    project.spec.file.write_text(text.replace("bits = 4\ngroup_size = 64", "bits = 5\ngroup_size = 32"))


def unknown_former_build(project: Project) -> None:
    other_adapter(project)
    for path in project.store.targets.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "state", "why", "reason", "reused"),
    [
        (without_view, "not shown", "view missing", "its view m_4bit is missing or shows something else", 3),
        (dropped, "not built", "bytes dropped", "its bytes were dropped; its records stay", 0),
        (one_blob_gone, "not built", "blobs gone", "1 of its 6 blobs are gone", 2),
        (other_adapter, "out of date", "adapter changed", "adapter changed", 2),
        (
            other_bits_and_group,
            "out of date",
            "bits 4 -> 5, +1",
            "bits 4 -> 5, group_size 64 -> 32",
            0,
        ),
        (
            unknown_former_build,
            "out of date",
            "unknown former build",
            "its view shows a build that the store does not know",
            2,
        ),
    ],
)
def test_what_happened_to_a_built_target(
    file: Path, change: Callable[[Project], None], state: str, why: str, reason: str, reused: int
) -> None:
    project = prepared(file)
    build(project, "m_4bit")
    change(project)
    row = status(Project.load(file), "m_4bit")
    assert (row.state, row.why, row.reason, row.due) == (state, why, reason, True)
    assert row.reused == reused


SLIP = DECLARATION.replace("bits = 4\n", 'bits = 4\noverrides = { "*.porj" = { bits = 8 } }\n')


@pytest.mark.parametrize(
    ("declared", "changed", "why", "reason"),
    [
        (DECLARATION, "", "new source", "base:toy has not been inspected yet"),
        (DECLARATION, "adapter", "source unusable", "adapter:tuned cannot be used: adapter.tuned: "),
        (SLIP, "inspected", "cannot be made", "[variant.4bit] "),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, declared: str, changed: str, why: str, reason: str) -> None:
    file = make_toy(tmp_path / "project", declared)
    project = prepared(file) if changed else Project.load(file)
    if changed == "adapter":
        shutil.rmtree(tmp_path / "project" / "adapter")
    row = status(project, "m_4bit")
    assert (row.state, row.why, row.due) == ("not planned", why, True)
    assert row.reason.startswith(reason)
    assert (row.size, row.blocks, row.reused, row.built) == (None,) * 4


@pytest.mark.parametrize(
    ("measures", "db"),
    [({}, None), ({"survival_db": 12}, 12.0), ({"survival_db": -3.5}, -3.5), ({"survival_db": "x"}, None)],
)
def test_survival(measures: Mapping[str, Scalar], db: float | None) -> None:
    assert survival_of(measures) == db
