"""Jobs on a cluster: submitted with what they depend on, followed, and cancelled when a person stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

from builder.cluster.checks import PASS
from builder.cluster.connection import Cluster, ClusterUnreachable, NoWorkers
from builder.cluster.jobs import Job
from builder.cluster.telling import TOPIC
from builder.cluster.worker import work
from builder.console.events import Emit, Note, Spread, Working
from builder.console.words import one_line
from builder.errors import BuildError, error_from

_LOOK_S = 0.5
_ALONE_S = 60.0  # without any worker


class JobFailed(BuildError):
    """{job}: {what}."""

    exit_code = 2
    hint = "The log of the worker says more."


@dataclass(frozen=True)
class Outcome:
    """What came of jobs, by their ids. `made`: keys that were made, and not only found."""

    made: Mapping[str, tuple[str, ...]]
    failed: Mapping[str, BuildError]


@dataclass
class _Run:
    cluster: Cluster
    jobs: Mapping[str, Job]
    emit: Emit
    said: Queue[tuple[str, Any]] = field(default_factory=Queue)
    made: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[str, BuildError] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of workers, by address
    at: dict[str, str] = field(default_factory=dict)  # job -> the worker that told of it last

    def hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Called by the thread of dask."""
        _, said = event
        if said.get("job") in self.jobs:
            self.said.put(("said", said))


def run_jobs(cluster: Cluster, brief: Mapping[str, Any], jobs: Sequence[Job], emit: Emit) -> Outcome:
    """Runs jobs, each after those that it needs. Errors of jobs are in the outcome, each told when it comes.

    Raises ClusterUnreachable and NoWorkers. Ctrl-C cancels all of them.
    """
    run = _Run(cluster, {job.id: job for job in jobs}, emit)
    client = cluster.client
    client.subscribe_topic(TOPIC, run.hear)
    futures: dict[str, Any] = {}
    try:
        emit(Spread(0, len(jobs)))
        for job in jobs:
            needed = [futures[name] for name in job.after if name in futures]
            futures[job.id] = client.submit(
                work, dict(brief), job.as_data(), *needed, key=job.id, resources={PASS: 1}, pure=False
            )
            futures[job.id].add_done_callback(lambda _, name=job.id: run.said.put(("done", name)))
        _follow(run, futures)
    except BaseException:
        _cancel(cluster, futures)
        raise
    finally:
        client.unsubscribe_topic(TOPIC)
        for future in futures.values():  # the scheduler forgets the answer: the store may change
            future.release()
        emit(Spread(len(jobs), len(jobs)))
    return Outcome(run.made, run.failed)


def _follow(run: _Run, futures: Mapping[str, Any]) -> None:
    """Until every job has ended. Raises ClusterUnreachable, NoWorkers."""
    left, alone = set(futures), 0.0
    while left:
        try:
            kind, said = run.said.get(timeout=_LOOK_S)
        except Empty:
            for name in [name for name in left if futures[name].done()]:  # no callback came
                run.said.put(("done", name))
            _check_connected(run.cluster)
            alone = 0.0 if run.cluster.workers() else alone + _LOOK_S
            if alone >= _ALONE_S:
                raise NoWorkers(address=run.cluster.address) from None
            continue
        if kind == "said":
            _tell(run, said)
        elif said in left:
            left.discard(said)
            _book(run, run.jobs[said], futures[said])
            run.emit(Spread(len(futures) - len(left), len(futures)))


def _check_connected(cluster: Cluster) -> None:
    """Raises ClusterUnreachable where the scheduler is gone."""
    if cluster.client.status not in ("running", "connecting"):
        raise ClusterUnreachable(address=cluster.address, what="the connection was lost")


def _tell(run: _Run, said: Mapping[str, Any]) -> None:
    """An event of a worker. dask puts its address into the message."""
    worker = _name(run, str(said.get("worker", "")))
    job = run.jobs[said["job"]]
    if "note" in said:
        run.emit(Note(f"{worker}: {said['note']}"))
        return
    run.at[job.id] = worker
    doing = f"{job.what}, {said['doing']}" if said["doing"] else job.what
    run.emit(Working(worker, doing, int(said["done"]), int(said["total"])))


def _name(run: _Run, address: str) -> str:
    if address not in run.names:
        run.names |= {place: worker.name for place, worker in run.cluster.workers().items()}
    return run.names.setdefault(address, address.partition("://")[2] or "worker")


def _book(run: _Run, job: Job, future: Any) -> None:
    """What a job returned or raised. Raises ClusterUnreachable."""
    from distributed.client import FutureCancelledError

    if worker := run.at.get(job.id):
        run.emit(Working(worker, "", 0, 0))
    try:
        answer = future.result()
    except FutureCancelledError as error:
        what = "the connection was lost, or somebody cancelled its jobs"
        raise ClusterUnreachable(address=run.cluster.address, what=what) from error
    except Exception as error:  # a bug of ours there, or workers that die of this job (KilledWorker)
        what = one_line(f"{type(error).__name__}: {error}")
        run.failed[job.id] = JobFailed(job=job.what, what=what)
    else:
        if "error" in answer:
            run.failed[job.id] = error_from(answer["error"])
        elif "bug" in answer:
            run.failed[job.id] = JobFailed(job=job.what, what=str(answer["bug"]).rstrip("."))
        else:
            run.made[job.id] = tuple(answer["made"])
    if job.id in run.failed:
        run.emit(Note(_failure(job, run.failed[job.id])))


def _failure(job: Job, error: BuildError) -> str:
    """Names the job once: a JobFailed begins with it."""
    what = error.message.removeprefix(f"{job.what}: ").rstrip(".")
    return f"{job.what} failed: {what}. The other jobs go on."


def _cancel(cluster: Cluster, futures: Mapping[str, Any]) -> None:
    """Takes jobs back. One that runs looks up and stops."""
    try:
        cluster.client.cancel(list(futures.values()))
    except Exception:  # the scheduler is gone, and its workers stop by themselves
        return
