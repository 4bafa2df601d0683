"""Whole runs with real models: what a remote has is pulled and not built, and without a remote nothing
changes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder.project.project import Project
from builder.store import records
from tests.commands.test_status import make_project
from tests.conftest import Sandbox, fresh_python, make_sandbox
from tests.remote.servers import BUCKET, S3
from tests.tiny import make_base
from tests.training.test_training import DECLARATION as TRAINED
from tests.training.test_training import rows

REMOTE = '\n[remote.team]\nurl = "../remote"\n'


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Everything built and pushed, and the lock committed."""
    box = make_project(tmp_path_factory.mktemp("team") / "ann")
    box.toml.write_text(box.toml.read_text() + REMOTE)
    assert box.doit("model:m_5bit", "model:m_4bit").code == 0
    assert box.builder("lock").code == 0
    assert box.builder("remote", "init").code == 0
    ran = box.builder("push", "m_5bit")
    assert ran.code == 0, ran.text
    return box


def shards(box: Sandbox, target: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in box.view(target).iterdir() if file.name[0] != "."}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_locked_run_of_a_fresh_clone_builds_nothing(ann: Sandbox) -> None:
    ben = ann.clone("ben")
    ran = ben.doit("--locked", "--progress", "json", "model:m_5bit")
    assert ran.code == 0, ran.text
    kinds = [event["event"] for event in events(ran.err)]
    assert "BlockDone" not in kinds
    assert "PassStarted" not in kinds
    assert "Transferred" in kinds
    assert shards(ben, "m_5bit") == shards(ann, "m_5bit")
    assert ben.builder("lock", "--check").code == 0
    status = {row["target"]: row for row in json.loads(ben.doit("status", "--json").out)["targets"]}
    assert status["m_5bit"]["state"] == "built"


@pytest.mark.slow
def test_only_blocks_that_nobody_has_are_built(ann: Sandbox) -> None:
    """m_4bit shares a block with m_5bit: that one is pulled, the others are made."""
    cara = ann.clone("cara")
    forecast = json.loads(cara.doit("plan", "m_4bit", "--json").out)
    assert forecast["prepare"]  # its base was not read yet
    assert cara.doit("base:tiny", "adapter:tuned").code == 0
    made = json.loads(cara.doit("plan", "m_4bit", "--json").out)
    assert [each["remote"] for each in made["fetch"]] == ["team"]
    ran = cara.doit("--progress", "json", "model:m_4bit")
    assert ran.code == 0, ran.text
    (done,) = (event for event in events(ran.err) if event["event"] == "TargetDone")
    assert (done["made"], done["reused"]) == (made["passes"][0]["make"], made["fetch"][0]["blocks"])
    assert done["reused"] >= 1
    assert shards(cara, "m_4bit")["config.json"] == shards(ann, "m_4bit")["config.json"]
    names = [name for name in shards(ann, "m_4bit") if name.endswith(".safetensors")]
    assert all(shards(cara, "m_4bit")[name] == shards(ann, "m_4bit")[name] for name in names)


@pytest.mark.slow
def test_no_remote_builds(ann: Sandbox) -> None:
    dora = ann.clone("dora")
    ran = dora.doit("--no-remote", "--progress", "json", "model:m_5bit")
    assert ran.code == 0, ran.text
    kinds = [event["event"] for event in events(ran.err)]
    assert "BlockDone" in kinds
    assert "Transferred" not in kinds


def test_a_target_without_its_base_comes_by_the_lock(ann: Sandbox) -> None:
    """Nobody needs 57 GB of weights to run what CI has built of them."""
    emil = ann.clone("emil")
    shutil.rmtree(emil.root / "base")
    shutil.rmtree(emil.root / "adapter")
    ran = emil.builder("pull", "m_5bit")
    assert ran.code == 0, ran.text
    assert shards(emil, "m_5bit") == shards(ann, "m_5bit")
    assert "by its key in artifacts.lock" in ran.err
    (emil.root / "artifacts.lock").unlink()
    ran = emil.builder("pull", "m_5bit")
    assert ran.code == 1
    assert "base does not exist" in ran.err


@pytest.mark.slow
def test_bytes_of_another_device_are_taken_unless_one_says_no(ann: Sandbox) -> None:
    for device, comes in (("any", True), ("same", False)):
        frida = ann.clone(f"frida-{device}")
        frida.toml.write_text(f'[build]\ndevice = "{device}"\n' + frida.toml.read_text())
        text = "from builder.project import remotes\nremotes.device = lambda: 'cuda'\n"
        text += "import sys\nfrom builder.commands.main import main\nsys.exit(main(['pull', 'm_5bit']))"
        (frida.root / "run.py").write_text(text)
        ran = frida.run("python", "run.py")
        assert (ran.code == 0) is comes, ran.text
        assert ("of other devices" in ran.err) is not comes


def test_a_run_with_nothing_to_do_loads_nothing_of_it(ann: Sandbox) -> None:
    """No import, so no request: where no remote is declared, and where everything is built."""
    code = (
        "import sys\n"
        "from builder.commands.main import main\n"
        "for command in ('build', 'status', 'why', 'plan'):\n"
        "    assert main(['-d', sys.argv[1], command, 'm_5bit']) == 0\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('obstore', 'cryptography')\n"
        "       or m.startswith('builder.remote')])"
    )
    for declared in (REMOTE, ""):
        gina = ann.clone(f"gina{len(declared)}")
        shutil.copytree(ann.root / "store", gina.root / "store", symlinks=True)
        gina.toml.write_text(gina.toml.read_text().replace(REMOTE, declared))
        assert fresh_python(code, str(gina.root)).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_structure_of_a_base_travels(ann: Sandbox) -> None:
    """Who has the weights need not inspect them again."""
    hans = ann.clone("hans")
    assert hans.doit("base:tiny").code == 0
    made = [Project.load(box.toml) for box in (ann, hans)]
    structures = [
        records.read(project.store, key)
        for project in made
        for key in records.record_keys(project.store)
        if (record := records.read(project.store, key)) and record.kind == "structure"
    ]
    assert len(structures) == 2
    assert structures[0] == structures[1]  # also when it was made


@pytest.mark.slow
def test_processes_that_are_forked_use_a_bucket(ann: Sandbox, s3: S3) -> None:
    """obstore hangs in a child of a process that has used it. Only tasks use a remote, and children run
    them.
    """
    fork = f'\n[remote.team]\nurl = "s3://{BUCKET}/forks"\nendpoint = "{s3.endpoint}"\npush = "always"\n'
    igor = ann.clone("igor")
    igor.toml.write_text(igor.toml.read_text().replace(REMOTE, fork))
    assert igor.builder("remote", "init").code == 0
    ran = igor.doit("-n", "2", "model:m_5bit", "model:m_4bit")
    assert ran.code == 0, ran.text
    assert "pushed for m_" in ran.err
    june = igor.clone("june")
    shutil.rmtree(june.root / "store", ignore_errors=True)
    ran = june.doit("--locked", "-n", "2", "--progress", "json", "model:m_5bit", "model:m_4bit")
    assert ran.code == 0, ran.text
    assert "BlockDone" not in [event["event"] for event in events(ran.err)]
    assert shards(june, "m_5bit") == shards(igor, "m_5bit")


@pytest.mark.slow
def test_a_trained_adapter_travels(tmp_path: Path) -> None:
    """One trains for hours, and the others have the adapter and what was built of it."""
    kim = make_sandbox(tmp_path / "kim", f"{TRAINED}{REMOTE}")
    make_base(kim.root / "base")
    (kim.root / "data").mkdir()
    (kim.root / "data" / "train.jsonl").write_text(rows(9))
    (kim.root / "data" / "valid.jsonl").write_text(rows(4))
    assert kim.builder("remote", "init").code == 0
    ran = kim.clone("lea").builder("pull", "m_4bit")  # nobody has trained it yet, and a pull does not
    assert ran.code == 1
    assert "its adapter tuned is not trained. [NotPlanned]" in ran.err
    assert kim.doit().code == 0
    assert kim.builder("push").code == 0
    mia = kim.clone("mia")
    ran = mia.doit("--progress", "json")
    assert ran.code == 0, ran.text
    kinds = {event["event"] for event in events(ran.err)}
    assert not kinds & {"BlockDone", "PassStarted", "Learning"}
    assert shards(mia, "m_4bit") == shards(kim, "m_4bit")
    nora = kim.clone("nora")
    assert nora.builder("pull").code == 0
    assert shards(nora, "m_4bit") == shards(kim, "m_4bit")
