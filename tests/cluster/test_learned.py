"""Targets that are made of another one, on a cluster: a worker makes all of it, and the client takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.build.prepare import prepare_target
from builder.build.sharing import look_again
from builder.cluster import connection, worker
from builder.cluster.spreading import build_jobs
from builder.console.events import silent
from builder.project.project import Project
from builder.release.delivery import deliver
from builder.remote.connect import connect
from builder.remote.setup import init
from tests.build.test_gguf import make
from tests.build.test_learned import LEARNED, words
from tests.cluster.machines import Machines
from tests.cluster.test_builds import REMOTE, computed, counting, weights
from tests.commands.test_status import make_project
from tests.conftest import Sandbox

NAME = "m_learned"
SOURCE = 6  # blocks of the variant that the method reads


def declared(root: Path) -> Sandbox:
    box = make_project(root)
    box.edit('"5bit"]', '"5bit", "learned"]')
    box.toml.write_text(box.toml.read_text() + LEARNED.format(method="gptq") + REMOTE)
    (root / "text.txt").write_text(words(0))
    return box


@pytest.mark.slow
def test_a_learned_variant_is_made_by_a_worker(tmp_path: Path) -> None:
    """The blocks of its source are made first, by any worker. The method runs once, on one of them."""
    client = declared(tmp_path / "client")
    assert client.builder("remote", "init").code == 0
    alone = client.clone("alone")
    with Machines(tmp_path / "machines") as machines:
        for name in ("one", "two"):
            machines.worker(client.clone(name).root, name, counting(tmp_path))
        ran = client.builder("--cluster", machines.address, "build", NAME)
    assert ran.code == 0, ran.text
    said = [line for line in ran.err.splitlines() if f"{NAME}: gptq on m_f16" in line]
    assert len(said) == 1, ran.err
    assert said[0].startswith(("one: ", "two: "))
    assert not client.view("m_f16").exists()
    made = computed(tmp_path)
    assert len(made) == SOURCE
    assert set(made.values()) == {1}
    assert alone.builder("build", "--no-remote", NAME).code == 0
    assert weights(client, NAME) == weights(alone, NAME)


def test_an_exact_gguf_is_repacked_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of its source come first, as a job of their own. The client finds all of it."""
    pytest.importorskip("gguf")
    box = make(tmp_path / "client")
    box.toml.write_text(box.toml.read_text() + REMOTE)
    project = Project.load(box.toml)
    init(connect(project.spec.remotes["team"]))
    plan = prepare_target(project, project.spec.target("m_same"), silent)
    *blocks, last = build_jobs(project, [plan], 1)
    assert {(job.kind, job.targets) for job in blocks} == {("blocks", ("m_5bit",))}
    assert (last.kind, last.targets, last.keys) == ("target", ("m_same",), (plan.key,))
    assert last.after == tuple(job.id for job in blocks)
    brief = {
        "declaration": box.toml.read_text(),
        "session": "elsewhere",
        "remote": "team",
        "versions": connection.versions_here(),
    }
    for name, jobs in (("one", blocks), ("two", [last])):
        monkeypatch.setenv(worker.FOLDER, str(box.clone(name).root))
        worker._opened.cache_clear()
        look_again()
        for job in jobs:
            assert worker.work(brief, json.loads(json.dumps(job.as_data()))).get("made")
    look_again()
    assert [made.made for made in deliver(project, "m_same", {"m_same"}, (), silent)] == [0]
