"""The remembered keys: they hold for the same inputs and the same code, and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import builder
from builder.keys import make_key
from builder.project import memo
from builder.project import project as projects
from builder.project.project import Project
from builder.sources.catalog import structure_key
from builder.sources.facts import Unknown
from builder.store import blobs, records
from builder.store.types import Record
from builder.weights.structure import to_text
from tests.test_layers import arrows, modules
from tests.toy import DECLARATION, LEARNED, STRUCTURE, make_toy, prepared, save_adapter
from tests.toy import planned as planned_target

WHOLE = DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + LEARNED


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project whose keys have been remembered."""
    file = make_toy(tmp_path / "project", WHOLE)
    assert set(prepared(file).keys) == {"m_f16", "m_4bit", "m_8bit", "m_dwq"}
    return file


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each plan that is made."""
    made: list[str] = []
    make_plan = projects.make_plan

    def counted(*arguments: object) -> object:
        made.append("plan")
        return make_plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(projects, "make_plan", counted)
    return made


def keys_of(file: Path) -> dict[str, str]:
    return dict(Project.load(file).keys)


def key_of_inputs(file: Path) -> str | None:
    project = Project.load(file)
    return memo.inputs(project.spec, project.sources)


def test_the_same_inputs_are_not_planned_again(file: Path, planned: list[str]) -> None:
    recalled = keys_of(file)
    assert planned == []
    project = Project.load(file)
    assert recalled == {target.name: target.key for target in project.plan.resolved()}


def touched(file: Path) -> None:
    for path in (file, *file.parent.glob("*/*.*")):
        path.touch()


def written_anew(file: Path) -> None:
    """Other inodes and times, the same bytes."""
    for path in (file, file.parent / "base/config.json", file.parent / "adapter/adapters.safetensors"):
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)


def what_nobody_reads(file: Path) -> None:
    (file.parent / "base/README.md").write_text("words")
    (file.parent / "base/training.log").write_text("words")


@pytest.mark.parametrize("change", [touched, written_anew, what_nobody_reads])
def test_what_changes_no_input(file: Path, planned: list[str], change: Callable[[Path], None]) -> None:
    before = keys_of(file)
    change(file)
    assert keys_of(file) == before
    assert planned == []


# -- each changed input is planned again ---------------------------------------------------------------------


def comment(file: Path) -> None:
    file.write_text(file.read_text() + "# a remark\n")


def bits(file: Path) -> None:
    file.write_text(file.read_text().replace("bits = 8", "bits = 6"))


def config(file: Path) -> None:
    (file.parent / "base/config.json").write_text('{"model_type": "toy", "rope_theta": 1}')


def weights(file: Path) -> None:
    (file.parent / "base/model.safetensors").write_bytes(b"WEIGHTS of the base")


def tokenizer(file: Path) -> None:
    (file.parent / "base/tokenizer.json").write_text("{ }")


def another_file_to_copy(file: Path) -> None:
    (file.parent / "base/merges.txt").write_text("a b\n")


def adapter(file: Path) -> None:
    save_adapter(file.parent / "adapter", fill=1)


def scale(file: Path) -> None:
    save_adapter(file.parent / "adapter", scale=4.0)


def text(file: Path) -> None:
    (file.parent / "text.txt").write_text("other words")


CHANGES: list[tuple[Callable[[Path], None], set[str]]] = [
    (comment, set()),
    (bits, {"m_8bit"}),
    (config, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (weights, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (tokenizer, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (another_file_to_copy, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (adapter, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (scale, {"m_f16", "m_4bit", "m_8bit", "m_dwq"}),
    (text, {"m_dwq"}),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_changed_input_is_planned_again(
    file: Path, planned: list[str], change: Callable[[Path], None], changed: set[str]
) -> None:
    before, inputs = keys_of(file), key_of_inputs(file)
    change(file)
    assert key_of_inputs(file) != inputs
    if change in (config, weights):
        prepared(file)  # another base is inspected anew
    after = keys_of(file)
    assert planned == ["plan"]
    assert {name for name in before if after.get(name) != before[name]} == changed
    assert keys_of(file) == after
    assert planned == ["plan"]  # now these are remembered


def test_another_structure_of_the_same_base_is_planned_again(file: Path, planned: list[str]) -> None:
    """As `inspect_again` of an upgraded mlx-lm may leave one."""
    project = Project.load(file)
    inputs = key_of_inputs(file)
    located = project.sources.base_identity(project.spec.bases["toy"])
    assert not isinstance(located, Unknown)
    other = to_text(STRUCTURE).replace("bfloat16", "float16")
    blob = blobs.ingest(project.store, [other.encode()])
    records.write(project.store, Record(structure_key(located.weights), "structure", blob))
    assert key_of_inputs(file) != inputs
    keys_of(file)
    assert planned == ["plan"]


def test_other_code_never_takes_over_what_was_remembered(
    file: Path, planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys_of(file)
    monkeypatch.setattr(memo, "_code", lambda: "another version of this program")
    assert keys_of(file) == before
    assert planned == ["plan"]


def test_versions_count_where_they_are_part_of_the_keys(
    file: Path, planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo, "toolchain", lambda: "mlx 99")
    keys_of(file)
    assert planned == []
    file.write_text(file.read_text() + "\n[build]\nstrict_toolchain = true\n")
    keys_of(file)
    keys_of(file)
    assert planned == ["plan"]
    monkeypatch.setattr(memo, "toolchain", lambda: "mlx 100")
    keys_of(file)
    assert planned == ["plan"] * 2


# -- in doubt it is planned again ----------------------------------------------------------------------------


def no_structure(file: Path) -> None:
    for record in (file.parent / "store/actions").rglob("*"):
        if record.is_file():
            record.unlink()


def damaged_structure(file: Path) -> None:
    for record in (file.parent / "store/actions").rglob("*"):
        if record.is_file():
            record.chmod(0o644)
            record.write_bytes(record.read_bytes()[:-1])


def no_base(file: Path) -> None:
    shutil.rmtree(file.parent / "base")


def no_shards(file: Path) -> None:
    (file.parent / "base/model.safetensors").unlink()


def no_adapter(file: Path) -> None:
    shutil.rmtree(file.parent / "adapter")


def two_adapters(file: Path) -> None:
    (file.parent / "adapter/adapter_model.safetensors").write_bytes(b"")


def no_text(file: Path) -> None:
    (file.parent / "text.txt").unlink()


@pytest.mark.parametrize(
    "change", [no_structure, damaged_structure, no_base, no_shards, no_adapter, two_adapters, no_text]
)
def test_an_input_that_is_not_known(file: Path, planned: list[str], change: Callable[[Path], None]) -> None:
    """Nothing is recalled, and nothing is remembered of what could not all be planned."""
    change(file)
    assert key_of_inputs(file) is None
    assert keys_of(file) == {target.name: target.key for target in Project.load(file).plan.resolved()}
    assert len(keys_of(file)) < 4
    assert planned == ["plan"] * 3


def test_a_declaration_that_is_replaced_after_it_was_read(file: Path) -> None:
    """The keys of the former one were remembered for the new one, and a target of other bits was `built`."""
    file.write_text(file.read_text().replace("bits = 8", "bits = 6"))
    project = Project.load(file)
    file.write_text(file.read_text().replace("bits = 6", "bits = 5"))
    former = dict(project.keys)
    assert keys_of(file) == {target.name: target.key for target in Project.load(file).plan.resolved()}
    assert keys_of(file)["m_8bit"] != former["m_8bit"]


def test_a_source_that_is_replaced_after_it_was_planned_from(file: Path) -> None:
    project = Project.load(file)
    former = planned_target(project, "m_4bit").key
    save_adapter(file.parent / "adapter", fill=7)
    assert project.keys["m_4bit"] == former
    fresh = {target.name: target.key for target in Project.load(file).plan.resolved()}
    assert keys_of(file) == fresh
    assert fresh["m_4bit"] != former


def test_a_refused_target_is_not_remembered_as_if_it_were_not_declared(
    file: Path, planned: list[str]
) -> None:
    file.write_text(
        file.read_text().replace("bits = 8\n", 'bits = 8\noverrides = { "*.porj" = { bits = 4 } }\n')
    )
    assert key_of_inputs(file) is not None
    assert "m_8bit" not in keys_of(file)
    assert set(keys_of(file)) == {"m_f16", "m_4bit", "m_dwq"}
    assert planned == ["plan"] * 2


def test_a_lost_or_damaged_cache_costs_a_plan_and_nothing_else(file: Path, planned: list[str]) -> None:
    before = keys_of(file)
    for path in file.parent.glob("store/state.sqlite*"):
        path.write_bytes(b"not a database")
    assert keys_of(file) == before
    assert len(planned) >= 1
    assert keys_of(file) == before


def test_what_is_remembered_comes_back(file: Path) -> None:
    cache = Project.load(file).cache
    assert memo.recall(cache, make_key("never")) is None
    known = {"m": memo.Known(make_key("m"), make_key("measured"))}
    memo.remember(cache, make_key("inputs"), known)
    assert memo.recall(cache, make_key("inputs")) == known
    assert memo.recall(cache, make_key("other inputs")) is None
    cache.put("index", make_key("flat"), json.dumps({}).encode())
    assert not memo.recall(cache, make_key("flat"))


def test_every_module_that_planning_reaches_is_a_part_of_what_is_remembered() -> None:
    """A module that could change a key and is not hashed would leave old keys in force after an upgrade."""
    package = Path(builder.__file__).parent
    hashed = {file for pattern in memo.CODE for file in package.glob(pattern)}
    graph, known = arrows(), modules()
    todo, reached = ["plan.planning", "project.project"], set[str]()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph[name]
    shown = {"console.events", "console.display", "console.lines", "console.live"}  # they only show
    assert {"keys", "spec.parse", "weights.structure", "sources.catalog", "plan.quantization"} <= reached
    assert [name for name in sorted(reached - shown) if known[name] not in hashed] == []
