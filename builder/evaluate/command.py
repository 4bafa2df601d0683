"""Runs the command of a suite, which measures a target and prints one JSON object of numbers."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from builder.errors import BuildError
from builder.evaluate.statistics import Figure, wilson
from builder.spec.types import Suite


class CommandFailed(BuildError):
    """suite {suite}: {command}: {what}"""

    exit_code = 2
    hint = "It must end with exit code 0 and print its figures as one JSON object of numbers."


def run_command(suite: Suite, model: Path, folder: Path) -> dict[str, Figure]:
    """Runs the command in `folder` and returns its figures by name. Raises CommandFailed.

    The JSON object is the whole output, or the last line of the output.
    """
    code, out, err = _run(suite, model, folder)
    if code:
        last = (err.strip() or out.strip()).splitlines()[-1:]
        raise _failed(suite, f"ended with exit code {code}" + (f": {last[0]}" if last else ""))
    for text in (out, out.strip().rpartition("\n")[2]):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if figures := _figures(data, lambda what: _failed(suite, what)):
            return figures
    raise _failed(suite, "did not print a JSON object of numbers")


def _failed(suite: Suite, what: str) -> CommandFailed:
    return CommandFailed(suite=suite.name, command=suite.command, what=what)


def _run(suite: Suite, model: Path, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. The whole process group is killed when we stop or after `timeout`."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        words = [word.replace("{model}", str(model)) for word in shlex.split(suite.command)]
        if not words:
            raise ValueError("it has no words")
        started = subprocess.Popen(words, cwd=folder, process_group=0, **pipes)  # type: ignore[call-overload]
    except (OSError, ValueError) as error:
        raise _failed(suite, str(error)) from error
    with started as process:
        try:
            out, err = process.communicate(timeout=suite.timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _failed(suite, f"stopped after {suite.timeout} seconds") from None
            raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _figures(data: object, failed: Callable[[str], CommandFailed]) -> dict[str, Figure]:
    """The numbers of a JSON object. Empty if `data` is not an object.

    `n` in the object says how many observations the figures come from. It is a number, or an object with one
    number for each figure. A figure from 0 to 1 that has an `n` is taken for a rate, with Wilson's interval.
    """
    if not isinstance(data, dict):
        return {}
    counts = data.get("n")
    figures = {}
    for name, said in data.items():
        if name == "n" or isinstance(said, bool) or not isinstance(said, int | float):
            continue
        value = _finite(said)
        if value is None:
            raise failed(f"{name} is {said}, which is not a finite number")
        said_n = counts.get(name) if isinstance(counts, Mapping) else counts
        n = 1 if said_n is None else _count(said_n)
        if n is None:
            raise failed(f"n is {said_n}, which is not a count")
        figures[name] = Figure(value, None, None, n)
        if said_n is not None and 0 <= value <= 1:
            low, high = wilson(round(value * n), n)
            figures[name] = Figure(value, min(low, value), max(high, value), n)
    return figures


def _finite(number: int | float) -> float | None:
    try:
        value = float(number)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _count(said: object) -> int | None:
    """A whole number of at least 1, also when written as 3.0. None for anything else."""
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    value = _finite(said)
    return int(value) if value is not None and value >= 1 and value == int(value) else None
