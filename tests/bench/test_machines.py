"""The calculation of bench/cluster.py, against cases that can be told by hand."""

from __future__ import annotations

import pytest

from bench.machines import Task, limit, shape, simulate

FREE = 1e18  # a store that costs nothing


def test_computing_is_shared_evenly() -> None:
    tasks = [Task(10.0)] * 8
    assert [round(simulate(tasks, n, FREE)) for n in (1, 2, 4, 8, 64)] == [80, 40, 20, 10, 10]
    assert simulate(tasks, 3, FREE) == pytest.approx(30)
    assert simulate(tasks, 1, FREE, overhead=1.0) == pytest.approx(88)


def test_a_long_job_is_waited_for() -> None:
    assert simulate([Task(100.0), *[Task(1.0)] * 20], 4, FREE) == pytest.approx(100)


def test_what_is_sent_goes_beside_computing_and_what_is_received_comes_before() -> None:
    assert simulate([Task(10.0, send=50)], 1, 10) == pytest.approx(10)
    assert simulate([Task(10.0, send=200)], 1, 10) == pytest.approx(20)
    assert simulate([Task(10.0, receive=50)], 1, 10) == pytest.approx(15)


def test_transfers_share_the_store() -> None:
    tasks = [Task(1.0, send=100)] * 4
    for workers in (1, 2, 4):
        assert simulate(tasks, workers, 10) == pytest.approx(40)
    assert simulate([Task(0.0, receive=100), Task(5.0)], 2, 10) == pytest.approx(10)


def test_no_number_of_workers_beats_the_store_or_the_longest_job() -> None:
    model = shape("x", 1e9, 24, 100.0)
    tasks = model.blocks(4.0, 24) + model.suites(2)
    moved = sum(task.receive + task.send for task in tasks)
    times = [simulate(tasks, n, 1e8) for n in (1, 2, 4, 8, 16, 32, 64)]
    assert times == sorted(times, reverse=True)
    assert all(each >= max(moved / 1e8, 100.0) - 1e-6 for each in times)


def test_the_point_where_the_store_is_the_limit() -> None:
    tasks = [Task(10.0, send=10)] * 64  # 64 workers need 64 bytes/s
    assert limit(tasks, 1e9) is None
    assert limit(tasks, 8.0) == 8
    assert limit([Task(10.0, send=10)] * 3, 8.0) is None


def test_the_shape_of_the_study() -> None:
    study = shape("study", 30.5e9, 48, 1000.0)
    assert study.base == 61e9
    assert round(study.variants[1] / 1e9) == 21
    assert len(study.blocks(3.9, 96)) == 48
    assert sum(task.send for task in study.blocks(3.9, 12)) == pytest.approx(sum(study.variants))
