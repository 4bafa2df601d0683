"""A real scheduler of dask and real workers on loopback, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tests.conftest import PATIENCE, ROOT


class Machines:
    """Starts processes, and ends those that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Machines:
        file = self.folder / "scheduler.json"
        self._start(
            *("dask", "scheduler", "--host", "127.0.0.1", "--port", "0"),
            *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)),
            where=self.folder,
        )
        with suppress(FileNotFoundError):
            file.unlink()
        until = time.monotonic() + PATIENCE
        while not self.address:
            assert time.monotonic() < until, "the scheduler did not start"
            time.sleep(0.05)
            with suppress(FileNotFoundError, ValueError):
                self.address = json.loads(file.read_text())["address"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def worker(
        self, folder: Path, name: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A worker as `builder worker` starts it, in that folder."""
        command = ("builder.commands.main", "worker", self.address, "--name", name)
        return self._start(*command, where=folder, env=env)

    def other_worker(self, folder: Path, *options: str) -> subprocess.Popen[bytes]:
        """A worker that somebody started in another way."""
        return self._start("dask", "worker", self.address, "--no-nanny", *options, where=folder)

    def _start(
        self, *command: str, where: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=where,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{self.processes.index(process)}.log").read_text(errors="replace")


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stands still meanwhile, as a Mac that sleeps."""
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)
