"""The connection to a scheduler of dask. Only this module and `running` import distributed."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from builder.cluster.checks import (
    PACKAGES,
    PASS,
    Worker,
    device_remark,
    other_devices,
    place_problems,
    setting_problems,
    version_problems,
)
from builder.cluster.worker import OtherVersions, meet
from builder.console.events import Emit, Note
from builder.console.words import count, one_line
from builder.errors import BuildError
from builder.project.toolchain import device, version_of

_CONNECT_S, _WORKERS_S = 10.0, 60.0


class ClusterMissing(BuildError):
    """--cluster needs the extra "cluster", which is not installed."""

    exit_code = 2
    hint = "Install it: uv sync --extra cluster, or pip install 'modelkiln[cluster]'."


class ClusterUnreachable(BuildError):
    """the scheduler at {address} cannot be used: {what}."""

    exit_code = 2
    hint = "Is it running? `dask scheduler --host HOST --port 8786` starts one."


class NoWorkers(BuildError):
    """no worker is connected to the scheduler at {address}."""

    exit_code = 2
    hint = "Start one in the folder of the project on each machine: `builder worker {address}`."


class WorkersUnfit(BuildError):
    """the cluster cannot be used: {what}."""

    exit_code = 2
    hint = "Start workers with `builder worker {address}`, in the folder of the project."


@dataclass
class Cluster:
    """A connected client."""

    address: str
    client: Any
    versions: Mapping[str, str]

    @property
    def width(self) -> int:
        """How many jobs run at once."""
        return max(1, round(sum(worker.passes for worker in self.workers().values())))

    def workers(self) -> dict[str, Worker]:
        """Address -> what the scheduler knows of each worker."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        return {
            address: Worker(
                _name(said.get("name"), address),
                {},
                float(said.get("resources", {}).get(PASS, 0)),
                int(said.get("memory_limit") or 0),
            )
            for address, said in known.items()
        }


def connect(address: str, emit: Emit) -> Cluster:
    """Connects, and compares versions and settings of all workers. Raises BuildError before a job starts."""
    try:
        import distributed
    except ImportError:
        raise ClusterMissing() from None
    for name in ("distributed", "distributed.client", "distributed.core", "distributed.comm", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # we compare versions ourselves
            client = _quiet(distributed.Client)(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterUnreachable(address=address, what=one_line(error, 160)) from error
    cluster = Cluster(address, client, versions_here())
    try:
        _check(cluster, emit)
    except BaseException:
        client.close()
        raise
    return cluster


def _quiet(client: type) -> type:
    """A client that never came to life would be closed when it is collected: 20 s, and a traceback."""
    return type("Client", (client,), {"__del__": lambda self: None})


def versions_here() -> dict[str, str]:
    """What must be the same on every machine."""
    return {"python": _minor(platform.python_version()), **{name: version_of(name) for name in PACKAGES}}


def _check(cluster: Cluster, emit: Emit) -> None:
    """Raises NoWorkers, WorkersUnfit, OtherVersions."""
    try:
        cluster.client.wait_for_workers(1, timeout=_WORKERS_S)
    except TimeoutError:
        raise NoWorkers(address=cluster.address) from None
    workers = cluster.workers()
    if problems := setting_problems(list(workers.values())):
        raise WorkersUnfit(what="; ".join(problems), address=cluster.address)
    if problems := version_problems(cluster.versions, _with_versions(cluster, workers)):
        raise OtherVersions(what="; ".join(problems))
    emit(Note(f"cluster: {count(len(workers), 'worker')} at {cluster.address}"))


def _with_versions(cluster: Cluster, workers: Mapping[str, Worker]) -> list[Worker]:
    """Asked by functions of Python alone, which work whatever the worker has."""
    from importlib.metadata import version

    said: dict[str, dict[str, str]] = {address: {} for address in workers}
    answers = {"python": _asked(cluster, platform.python_version)}
    for name in PACKAGES:
        answers[name] = _asked(cluster, version, name)
    for name, by_worker in answers.items():
        for address, answer in by_worker.items():
            found = answer if isinstance(answer, str) else "-"
            said.setdefault(address, {})[name] = _minor(found) if name == "python" else found
    return [Worker(worker.name, said[address]) for address, worker in workers.items()]


def introduce(cluster: Cluster, brief: Mapping[str, Any], *, same_device: bool, emit: Emit) -> bool:
    """Asks each worker where it would put what it makes. Whether all have this store. Raises WorkersUnfit."""
    workers = cluster.workers()
    answers = _asked(cluster, meet, dict(brief))
    found = []
    for address, answer in answers.items():
        name = workers[address].name if address in workers else address
        if isinstance(answer, BaseException):
            problem = f"{type(answer).__name__}: {answer}"
            found.append(Worker(name, {}, problem=problem))
        else:
            found.append(Worker(name, {}, **answer))
    problems = place_problems(found)
    if same_device:
        problems += other_devices(device(), found)
    if problems:
        raise WorkersUnfit(what="; ".join(problems), address=cluster.address)
    if remark := device_remark(device(), found):
        emit(Note(remark))
    return all(worker.shares for worker in found)


def _asked(cluster: Cluster, function: Callable[..., object], *arguments: object) -> dict[str, Any]:
    """What each worker answers, or the exception that it raised. Raises ClusterUnreachable."""
    try:
        return dict(cluster.client.run(function, *arguments, on_error="return"))
    except Exception as error:  # a worker that dies meanwhile, and whatever cannot be pickled
        what = one_line(f"{type(error).__name__}: {error}", 160)
        raise ClusterUnreachable(address=cluster.address, what=what) from error


def _minor(version: str) -> str:
    """3.11.7 -> 3.11: patches of Python change no bytes."""
    return ".".join(version.split(".")[:2])


def _name(name: object, address: str) -> str:
    """What a person calls a worker. dask calls one without a name by its address."""
    return str(name) if name not in (None, address) else address.partition("://")[2]
