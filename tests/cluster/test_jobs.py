"""How work is cut into jobs, and what is refused: pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.cluster.checks import (
    Worker,
    device_remark,
    other_devices,
    place_problems,
    setting_problems,
    version_problems,
)
from builder.cluster.jobs import block_jobs, distinct, job_from, reference_job, runs, suites_job, target_job
from builder.evaluate.threshold import candidates, search
from builder.keys import make_key
from builder.plan.types import TargetPlan
from tests.toy import make_toy, planned, prepared

K1, K2 = make_key("test", 1), make_key("test", 2)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 70))
def test_runs_are_all_blocks_in_order(sizes: list[int], parts: int) -> None:
    named = [(f"b{at}", size) for at, size in enumerate(sizes)]
    cut = runs(named, parts)
    assert [block for run in cut for block in run] == [name for name, _ in named]
    assert all(cut)
    assert len(cut) <= min(parts, len(named))


def test_runs_are_of_about_the_same_size() -> None:
    assert runs([("a", 10), ("b", 10), ("c", 10), ("d", 10)], 2) == [("a", "b"), ("c", "d")]
    assert runs([("embedding", 90), ("a", 10), ("b", 10), ("c", 10)], 2) == [
        ("embedding",),
        ("a", "b", "c"),
    ]
    assert runs([("a", 1), ("b", 1), ("head", 98)], 3) == [("a",), ("b",), ("head",)]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[TargetPlan]:
    project = prepared(make_toy(tmp_path_factory.mktemp("jobs") / "toy"))
    return [planned(project, "m_4bit"), planned(project, "m_8bit")]


def test_targets_of_a_model_share_their_runs(plans: list[TargetPlan]) -> None:
    missing = {plan.name: plan.actions for plan in plans}
    jobs = block_jobs(plans, missing, workers=1)
    assert len(jobs) == 2
    assert {block for job in jobs for block in job.blocks} == {a.block for a in plans[0].actions}
    keys = [key for job in jobs for key in job.keys]
    assert len(keys) == len(set(keys))
    assert set(keys) == {action.key for plan in plans for action in plan.actions}
    assert block_jobs(plans, {plan.name: () for plan in plans}, workers=1) == []


def test_a_job_is_plain_data_and_named_by_its_keys(plans: list[TargetPlan]) -> None:
    job = block_jobs(plans, {plan.name: plan.actions for plan in plans}, workers=3)[0]
    data = json.loads(json.dumps(job.as_data()))
    assert job_from(data) == job
    assert job_from(data).id == job.id
    renamed = target_job("other", [K1])
    assert renamed.id == target_job("m_4bit", [K1]).id != target_job("m_4bit", [K2]).id
    assert suites_job("m", {"a": K1}).id != suites_job("m", {"b": K1}).id


def test_the_same_bytes_under_two_names_are_made_once() -> None:
    jobs = distinct([target_job("a", [K1]), target_job("b", [K1]), target_job("c", [K2])])
    assert [job.targets for job in jobs] == [("a", "b"), ("c",)]


def test_other_versions_are_named() -> None:
    here = {"python": "3.11", "mlx": "0.32.4", "mlx-lm": "0.32.2"}
    workers = [
        Worker("w1", here),
        Worker("w2", {**here, "mlx-lm": "0.32.0"}),
        Worker("w3", {**here, "mlx": "-"}),
    ]
    assert version_problems(here, workers) == [
        "w2 has mlx-lm 0.32.0, this machine mlx-lm 0.32.2",
        "w3 has no mlx, this machine mlx 0.32.4",
    ]


def test_settings_that_would_hang_or_kill_are_named() -> None:
    workers = [Worker("good", {}), Worker("idle", {}, passes=0), Worker("small", {}, memory_limit=10**9)]
    assert setting_problems(workers) == [
        "idle has no resource pass=1",
        "small has a memory limit of dask, which counts mapped files",
    ]
    assert place_problems([Worker("w", {}, problem="no remote")]) == ["w: no remote"]


def test_kinds_of_devices_are_told_or_refused() -> None:
    workers = [Worker("mac", {}, device="metal"), Worker("box", {}, device="cuda")]
    assert device_remark("metal", workers[:1]) == ""
    assert device_remark("metal", workers).endswith("and box (cuda): the last bit may differ")
    assert other_devices("metal", workers) == ["box computes on cuda, this machine on metal"]


# -- candidates of a search ------------------------------------------------------------------------------


ORDER = ["2", "3", "4", "5", "6", "8"]


def test_one_worker_is_asked_what_a_search_asks() -> None:
    assert candidates(ORDER, {}, 1) == ["5"]
    assert candidates(ORDER, {"5": True}, 1) == ["3"]
    assert candidates(ORDER, {"5": True, "4": False}, 4) == []


def test_several_workers_get_both_sides() -> None:
    assert candidates(ORDER, {}, 3) == ["5", "3", "8"]
    assert set(candidates(ORDER, {}, 9)) == set(ORDER)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 5))
def test_rounds_of_candidates_end_with_what_a_search_finds(passing: list[bool], width: int) -> None:
    order = [str(at) for at in range(len(passing))]
    truth = dict(zip(order, passing, strict=True))
    known: dict[str, bool] = {}
    for _ in range(len(order) + 1):
        names = candidates(order, known, width)
        if not names:
            break
        known |= {name: truth[name] for name in names}
    assert search(order, lambda name: pytest.fail(f"{name} is asked"), known).found is not None or not any(
        known.values()
    )


def test_suites_wait_for_what_they_are_compared_with() -> None:
    """Both targets wait for one job, whose name does not depend on the target that asked."""
    reference = reference_job("m_4bit", "fidelity", K1)
    assert reference.id == reference_job("m_8bit", "fidelity", K1).id
    assert suites_job("m_8bit", {"fidelity": K2}, [reference]).after == (reference.id,)
