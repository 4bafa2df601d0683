"""Whether the workers of a cluster can make what this machine would make. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PACKAGES = ("modelkiln", "mlx", "mlx-lm", "numpy")  # what makes the bytes, and what is said of them
PASS = "pass"  # the resource that a worker has one of for each device


@dataclass(frozen=True)
class Worker:
    """What a worker says of itself. `passes`: how many jobs it takes at once. `memory_limit`: of dask."""

    name: str
    versions: Mapping[str, str]
    passes: float = 1
    memory_limit: int = 0
    device: str = ""
    shares: bool = False
    problem: str = ""


def version_problems(here: Mapping[str, str], workers: Sequence[Worker]) -> list[str]:
    """One clause for each package of each worker that is another one than here."""
    return [
        f"{worker.name} has {_version(package, worker.versions.get(package, '-'))}, "
        f"this machine {_version(package, version)}"
        for worker in workers
        for package, version in here.items()
        if worker.versions.get(package, "-") != version
    ]


def _version(package: str, version: str) -> str:
    return f"no {package}" if version == "-" else f"{package} {version}"


def setting_problems(workers: Sequence[Worker]) -> list[str]:
    """How workers were started, where that would let jobs wait for ever or be killed for nothing."""
    found = [f"{each.name} has no resource {PASS}=1" for each in workers if each.passes < 1]
    limited = [each.name for each in workers if each.memory_limit]
    return [*found, *(f"{name} has a memory limit of dask, which counts mapped files" for name in limited)]


def place_problems(workers: Sequence[Worker]) -> list[str]:
    """What keeps workers from reading and publishing."""
    return [f"{each.name}: {each.problem}" for each in workers if each.problem]


def device_remark(device: str, workers: Sequence[Worker]) -> str:
    """What is said where kinds of devices are mixed. Empty where they are not."""
    others = [each for each in workers if each.device != device]
    if not others:
        return ""
    listed = ", ".join(f"{each.name} ({each.device})" for each in others)
    return f"this machine computes on {device}, and {listed}: the last bit may differ"


def other_devices(device: str, workers: Sequence[Worker]) -> list[str]:
    """For `[build] device = "same"`."""
    return [
        f"{each.name} computes on {each.device}, this machine on {device}"
        for each in workers
        if each.device != device
    ]
