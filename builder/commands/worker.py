"""`builder worker ADDRESS`: becomes a worker of dask, with the settings that a cluster needs here."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from doit.cmd_base import Command
from doit.exceptions import InvalidCommand

from builder.commands.base import AnyOrder
from builder.commands.guard import guarded
from builder.commands.usage import OneScreen

OPT_NAME: Mapping[str, Any] = {
    "name": "called",
    "long": "name",
    "type": str,
    "default": "",
    "metavar": "NAME",
    "help": "what the worker is called. Default: the name of the machine and a number",
}


class Worker(AnyOrder, OneScreen, Command):  # type: ignore[misc]
    name = "worker"
    doc_purpose = "work for others: build and measure what a scheduler of dask hands out"
    doc_usage = "ADDRESS [-- OPTIONS of dask worker]"
    doc_description = (
        "Start it in the folder of the project, where its sources are. It runs one job at a time."
        " Whoever reaches the scheduler can run any program here: see docs/machines.md."
    )
    cmd_options = (OPT_NAME,)

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        if not pos_args or pos_args[0].startswith("-"):
            raise InvalidCommand("worker takes the ADDRESS of a scheduler, for example tcp://127.0.0.1:8786")

        def run() -> int:
            from builder.cluster.connection import ClusterMissing

            if not find_spec("distributed"):
                raise ClusterMissing()
            name = opt_values["called"] or f"{platform.node()}-{os.getpid()}"
            address, *more = pos_args
            options = [*settings(name), *more]
            os.execv(sys.executable, [sys.executable, "-m", "dask", "worker", address, *options])

        return guarded(run)


def settings(name: str) -> list[str]:
    """The options of `dask worker`. One job at a time. No limit of memory, which would count mapped files."""
    return [
        *("--name", name, "--nthreads", "1", "--resources", "pass=1", "--memory-limit", "0"),
        *("--no-nanny", "--death-timeout", "60", "--dashboard-address", "127.0.0.1:0"),
    ]
