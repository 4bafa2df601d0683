"""What a worker does with a job, called as dask calls it: plain data in, keys out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from builder.build.prepare import prepare_sources, prepare_target
from builder.build.sharing import fetch, look_again
from builder.cluster import connection, publisher, running, worker
from builder.cluster.jobs import Job, block_jobs, job_from, target_job
from builder.cluster.running import JobFailed
from builder.cluster.spreading import build_jobs
from builder.cluster.worker import meet, work
from builder.console.events import Event, Learning, silent
from builder.errors import BuildError, StoreFull, error_from
from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project.measurements import keep
from builder.project.project import Project
from builder.project.state import missing_actions
from builder.release.delivery import deliver
from builder.remote.connect import connect
from builder.remote.setup import init
from builder.store.holdings import usable_record
from builder.store.locks import build_session
from tests import toy
from tests.build.test_calibrated import fill
from tests.conftest import Sandbox
from tests.tiny import DECLARATION
from tests.toy import planned
from tests.worlds import declare, make_source

TARGETS = ("m_4bit", "m_8bit")


class World:
    """Somebody who asks, and one worker with another store. Both reach a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = make_source(folder / "sources", "path", 1)
        self.here, self.there = folder / "here", folder / "there"
        for place in (self.here, self.there):
            file = declare(place, source)
            file.write_text(file.read_text() + '\n[remote.team]\nurl = "../remote"\n')
        init(connect(self.project.spec.remotes["team"]))
        for name in TARGETS:
            prepare_target(self.project, self.project.spec.target(name), silent)

    @property
    def project(self) -> Project:
        return Project.load(self.here / "artifacts.toml")

    @property
    def plans(self) -> list[TargetPlan]:
        return [planned(self.project, name) for name in TARGETS]

    def jobs(self, workers: int = 1) -> list[Job]:
        return block_jobs(self.plans, {plan.name: plan.actions for plan in self.plans}, workers)

    def brief(self, session: str = "elsewhere", **others: object) -> dict[str, Any]:
        declaration = (self.here / "artifacts.toml").read_text()
        versions = connection.versions_here()
        brief = {"declaration": declaration, "session": session, "remote": "team", "versions": versions}
        return {**brief, **others}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path)
    monkeypatch.setenv(worker.FOLDER, str(found.there))
    worker._opened.cache_clear()
    look_again()
    return found


def raised(answer: Mapping[str, Any]) -> BuildError:
    assert "error" in answer, answer
    return error_from(answer["error"])


def made_keys(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for answer in answers for key in answer["made"]]


def test_runs_of_blocks_come_back_as_keys_and_through_the_remote(world: World) -> None:
    brief, jobs = world.brief(), world.jobs()
    assert meet(brief) == {"device": meet(brief)["device"], "shares": False, "problem": ""}
    answers = [work(brief, json.loads(json.dumps(job.as_data()))) for job in jobs]
    wanted = {action.key for plan in world.plans for action in plan.actions}
    assert sorted(made_keys(answers)) == sorted(wanted)
    assert len(json.dumps(answers)) < 10_000  # no tensors
    look_again()
    fetch(world.project, world.plans, silent)
    assert all(not missing_actions(world.project.store, plan) for plan in world.plans)
    built = {each.name: each.made for each in deliver(world.project, "m_4bit", {*TARGETS}, (), silent)}
    assert built == dict.fromkeys(TARGETS, 0)
    alone = Project.load(declare(world.folder / "alone", f'path = "{world.folder}/sources/base1"'))
    deliver(alone, "m_4bit", {*TARGETS}, (), silent)
    for name in TARGETS:
        for file in (alone.store.models / name).glob("*.safetensors"):
            assert file.read_bytes() == (world.project.store.models / name / file.name).read_bytes()


def test_what_another_worker_published_is_not_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: the next worker has an empty store, and gets the same job."""
    job = world.jobs()[0].as_data()
    assert work(world.brief(), job)["made"]
    next_one = world.folder / "next"
    shutil.copytree(world.there, next_one, ignore=shutil.ignore_patterns("store"))
    monkeypatch.setenv(worker.FOLDER, str(next_one))
    look_again()
    assert work(world.brief(), job) == {"made": []}
    store = Project.load(next_one / "artifacts.toml").store
    assert all(usable_record(store, key) for key in job_from(job).keys)


def test_the_store_of_the_one_who_asks_needs_no_remote(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker.FOLDER, str(world.here))
    with build_session(world.project.store, [key for plan in world.plans for key in plan.keys]) as session:
        brief = world.brief(session.id, remote="")
        assert meet(brief)["shares"]
        assert work(brief, world.jobs()[0].as_data())["made"]
    assert not list((world.folder / "remote" / "v1").glob("blobs/*/*"))


def test_other_sources_there_are_refused_by_name(world: World) -> None:
    other = make_source(world.folder / "sources", "path", 2)
    changed = world.brief()
    changed["declaration"] = declare(world.folder / "draft", other).read_text() + (
        '\n[remote.team]\nurl = "../remote"\n'
    )
    error = raised(work(changed, world.jobs()[0].as_data()))
    assert type(error) is worker.OtherInputs
    assert "would make something else of m_4bit: its base, its adapter or its text" in error.message


def test_a_worker_that_joins_later_is_looked_at_too(world: World) -> None:
    versions = {**connection.versions_here(), "mlx-lm": "0.1"}
    error = raised(work(world.brief(versions=versions), world.jobs()[0].as_data()))
    assert type(error) is worker.OtherVersions
    assert "this machine mlx-lm 0.1" in error.message


def test_a_worker_without_a_place_to_publish_says_so(world: World) -> None:
    assert "no remote is declared" in meet(world.brief(remote=""))["problem"]
    shutil.rmtree(world.folder / "remote")
    assert "team" in meet(world.brief())["problem"]
    error = raised(work(world.brief(), world.jobs()[0].as_data()))
    assert "team" in error.message


def test_a_bug_comes_back_as_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecursionError("deep")

    monkeypatch.setitem(worker._DO, "target", broken)  # type: ignore[arg-type]
    assert work(world.brief(), target_job("m_4bit").as_data())["bug"] == "RecursionError: deep"
    assert "The log of the worker" in str(JobFailed(job="m_4bit", what="RecursionError"))


@pytest.mark.parametrize(
    "error", [JobFailed(job="m_4bit", what="RuntimeError: deep"), StoreFull(path="x", what="full")]
)
def test_a_job_that_failed_is_named_once(error: BuildError) -> None:
    said = running._failure(target_job("m_4bit"), error)
    assert said.startswith("m_4bit failed: ")
    assert said.count("m_4bit") == 1
    assert said.endswith(". The other jobs go on.")


def test_looking_for_what_is_new_takes_little_of_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look lists the whole store, and may take long. What is new is sent at the end at the latest."""
    looks: list[float] = []
    listed = publisher.kept

    def slow(project: Project) -> set[Key]:
        looks.append(time.monotonic())
        time.sleep(0.05)
        return listed(project)

    monkeypatch.setattr(publisher, "kept", slow)
    project, key = world.project, make_key("late")
    with publisher.publishing(project, project.spec.remotes["team"], silent) as found:
        assert found is not None
        began = time.monotonic()
        while time.monotonic() - began < 0.7:
            found.poke()
            time.sleep(0.005)
        busy = len(looks)
        keep(project.store, key, "routing", "text", "m_4bit")
        found.poke()
    assert busy <= 3  # the first, one at once, and one more after half a second
    assert list((world.folder / "remote").glob(f"v1/actions/*/{key}"))


def test_what_a_target_starts_from_is_made_before_it(tmp_path: Path) -> None:
    """A calibrated start has a job of its own, which the learned target waits for. It was not asked for."""
    text = toy.DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + toy.LEARNED
    text = text.replace("bits = 4\ngroup_size = 64\n", 'bits = 4\ncalibration = "text.txt"\n', 1)
    start = 'from = "f16"\nstart = "4bit"\n'
    text = text.replace('from = "f16"\n', start).replace(
        '"text.txt"\nbits = 4\ngroup_size = 64\n', '"text.txt"\n'
    )
    project = toy.prepared(toy.make_toy(tmp_path / "project", text))
    jobs = {job.what: job for job in build_jobs(project, [planned(project, "m_dwq")], 1)}
    made = {name: job for name, job in jobs.items() if job.kind == "target"}
    blocks = [job for job in jobs.values() if job.kind == "blocks"]
    assert list(made) == ["m_4bit", "m_dwq"]
    assert {job.targets for job in blocks} == {("m_f16",)}
    assert set(made["m_dwq"].after) == {made["m_4bit"].id, *(job.id for job in blocks)}


GOALS = """
[variant.small]
target = "5.5bpw"
group_size = 32
calibration = "text.jsonl"
samples = 6
sequence_length = 32

[variant.large]
target = "5.8bpw"
group_size = 32
calibration = "text.jsonl"
samples = 6
sequence_length = 32

[remote.team]
url = "../remote"
"""


@pytest.mark.slow
def test_targets_that_ask_for_a_size_are_made_elsewhere(
    sandbox: Callable[[str], Sandbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one after the other, as their jobs say. The costs of weights are measured once."""
    box = fill(sandbox(DECLARATION.replace('"5bit"]', '"small", "large"]') + GOALS))
    project = Project.load(box.toml)
    init(connect(project.spec.remotes["team"]))
    for name in ("m_small", "m_large"):
        prepare_sources(project, project.spec.target(name), silent)
    project.forget_plan()
    plans = [project.plan.targets[name] for name in ("m_small", "m_large")]
    jobs = build_jobs(project, plans, 1)
    assert [job.kind for job in jobs] == ["target", "target"]
    assert jobs[1].after == (jobs[0].id,)
    brief = {
        "declaration": box.toml.read_text(),
        "session": "elsewhere",
        "remote": "team",
        "versions": connection.versions_here(),
    }
    for name, job in zip(("one", "two"), jobs, strict=True):
        monkeypatch.setenv(worker.FOLDER, str(box.clone(name).root))
        worker._opened.cache_clear()
        answer = work(brief, json.loads(json.dumps(job.as_data())))
        assert answer["made"], answer
    costs = [records_of_kind(box.root.parent / name, "sensitivity") for name in ("one", "two")]
    assert costs[0] == costs[1] != []
    look_again()
    heard: list[Event] = []
    for name in ("m_small", "m_large"):
        assert [each.made for each in deliver(project, name, {name}, (), heard.append)] == [0]
    assert not [event for event in heard if isinstance(event, Learning)], "something was measured here"


def records_of_kind(folder: Path, kind: str) -> list[str]:
    """The keys of records of a kind, with the time that they say they were made."""
    found = []
    for file in sorted((folder / "store" / "actions").glob("*/*")):
        said = json.loads(file.read_text().partition("\n#")[0])
        if said["kind"] == kind:
            found.append(f"{file.name} {said}")
    return found


def test_worker_options_are_those_that_are_checked() -> None:
    from builder.commands.worker import settings

    said = settings("mac")
    assert said[said.index("--memory-limit") :][:2] == ["--memory-limit", "0"]
    assert "pass=1" in said
    assert "--no-nanny" in said
