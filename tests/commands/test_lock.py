"""artifacts.lock and attestations: what another machine, or another tool, can check."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands.test_status import make_project
from tests.conftest import Ran, Sandbox
from tests.tiny import make_adapter


def builder(box: Sandbox, *args: str) -> Ran:
    return box.run(sys.executable, "-m", "builder.commands.main", *args)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    box = make_project(tmp_path_factory.mktemp("lock") / "project")
    assert box.doit("model:m_5bit").code == 0
    assert builder(box, "lock").code == 0
    return box.root


@pytest.fixture
def box(template: Path, tmp_path: Path) -> Sandbox:
    shutil.copytree(template, tmp_path / "project", symlinks=True)
    return Sandbox(tmp_path / "project")


def test_nothing_differs(box: Sandbox) -> None:
    ran = builder(box, "lock", "--check")
    assert (ran.code, ran.out) == (0, "everything is as artifacts.lock says\n")
    assert box.doit("--locked", "model:m_5bit").code == 0


def test_another_machine_with_the_same_inputs(box: Sandbox) -> None:
    shutil.rmtree(box.root / "store")
    assert builder(box, "lock", "--check").code == 0  # reads the sources as a build does
    shutil.rmtree(box.root / "store")
    assert box.doit("--locked", "model:m_5bit").code == 0
    assert builder(box, "lock", "--check").code == 0  # the same bytes too


def test_another_adapter_is_named_and_refused(box: Sandbox) -> None:
    make_adapter(box.root / "adapter", seed=8)
    ran = builder(box, "lock", "--check")
    assert ran.code == 1
    assert [line.split(":")[0] for line in ran.out.splitlines()] == [
        "adapter.tuned",
        "target.m_4bit",
        "target.m_5bit",
        "target.m_f16",
    ]
    refused = box.doit("--locked")  # LockDiffers
    assert refused.code == 3
    assert refused.err.startswith("ERROR: artifacts.lock does not match: adapter.tuned, target.m_4bit")


def test_a_lock_written_where_nothing_is_built_says_the_same(box: Sandbox) -> None:
    lock = box.root / "artifacts.lock"
    before = lock.read_text()
    assert "files = " in before
    shutil.rmtree(box.root / "store")
    ran = builder(box, "lock")
    assert (ran.code, ran.out) == (0, "artifacts.lock: 1 base, 1 adapter, 3 targets\n")
    assert lock.read_text() == before
    make_adapter(box.root / "adapter", seed=8)
    assert builder(box, "lock").code == 0
    assert "files = " not in lock.read_text()  # other inputs: what was made of the former ones is not theirs


def test_what_is_not_in_the_lock_is_said_and_refused(box: Sandbox) -> None:
    shutil.copytree(box.root / "base", box.root / "second")
    declared = box.toml.read_text()
    box.toml.write_text(
        declared + '[base.new]\npath = "second"\n[model.n]\nbase = "new"\nvariants = ["4bit"]\n'
    )
    ran = builder(box, "lock", "--check")
    assert ran.code == 1
    assert ran.out.splitlines() == ["base.new: not in artifacts.lock", "target.n_4bit: not in artifacts.lock"]
    refused = box.doit("--locked", "model:n_4bit")
    assert refused.code == 3
    assert "does not match: base.new is not in it, target.n_4bit is not in it." in refused.err
    assert not box.view("n_4bit").exists()
    assert builder(box, "lock").code == 0
    box.toml.write_text(declared)
    ran = builder(box, "lock", "--check")
    assert ran.code == 1
    assert ran.out.splitlines() == ["base.new: not declared any more", "target.n_4bit: not declared any more"]


def test_a_good_lock_is_not_replaced_by_one_of_less(box: Sandbox) -> None:
    lock = box.root / "artifacts.lock"
    before = lock.read_text()
    shutil.rmtree(box.root / "store")
    (box.root / "adapter").rename(box.root / "elsewhere")
    for command in (("lock",), ("lock", "--check"), ("build", "--locked")):
        ran = builder(box, *command)
        assert ran.code == 1
        assert ran.err.startswith("ERROR: adapter.tuned: ")
        assert "adapter does not exist." in ran.err
    assert lock.read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base = 3\n", "base is not a table"),
        ("[base]\ntiny = 3\n", "base.tiny is not a table"),
        ("[base.tiny]\n", "base.tiny has no digest"),
        ("[target.m_4bit]\nkey = 5\n", "target.m_4bit.key is not a string"),
    ],
)
def test_a_lock_that_says_nothing_is_refused(box: Sandbox, text: str, said: str) -> None:
    (box.root / "artifacts.lock").write_text(f"format = 1\n{text}")
    for ran in (builder(box, "lock", "--check"), box.doit("--locked")):
        assert ran.code == 3
        assert ran.err.splitlines()[0].endswith(f"artifacts.lock: {said}. [LockInvalid]")
        assert "Traceback" not in ran.text
    assert builder(box, "lock").code == 0  # writes it anew
    assert builder(box, "lock", "--check").code == 0


def test_a_lock_that_is_none(box: Sandbox) -> None:
    lock = box.root / "artifacts.lock"
    lock.write_text("format = 99\n")
    assert "is not a lock of format 1" in builder(box, "lock", "--check").err  # LockInvalid
    lock.unlink()
    ran = box.doit("--locked")
    assert ran.code == 3
    assert "does not exist" in ran.err
    assert "Traceback" not in ran.text


def test_attest(box: Sandbox) -> None:
    made = json.loads(builder(box, "attest", "m_5bit").out)
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"] for subject in made["subject"]}
    config = (box.view("m_5bit") / "config.json").read_bytes()
    assert subjects["config.json"]["sha256"] == hashlib.sha256(config).hexdigest()
    dependencies = made["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [entry["name"] for entry in dependencies] == ["base:tiny", "adapter:tuned"]
    quick = json.loads(builder(box, "attest", "m_5bit", "--no-sha256").out)
    assert {tuple(subject["digest"]) for subject in quick["subject"]} == {("blake3",)}
    assert len(quick["subject"]) == len(made["subject"])


def test_attestations_are_json_lines(box: Sandbox) -> None:
    refused = builder(box, "attest", "m_5bit", "m_4bit")  # NotBuilt
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines()[0] == "ERROR: m_4bit is not built. [NotBuilt]"
    assert builder(box, "build", "m_4bit").code == 0
    lines = builder(box, "attest", "m").out.splitlines()
    targets = [
        json.loads(line)["predicate"]["buildDefinition"]["externalParameters"]["target"] for line in lines
    ]
    assert targets == ["m_4bit", "m_5bit"]
    none = builder(box, "attest")
    assert none.code == 3
    assert "attest takes a TARGET" in none.err
