"""Talks to the process that holds a model: sends a request, shows the progress, returns the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import IO, Any

from builder.console.events import Emit, Event, Note, Scored
from builder.errors import BuildError, error_from

Step = Callable[[int, int], None]  # step(done, total)
MARK = "modelkiln progress "  # begins the worker's lines on stderr that are not for people
NOTE = "modelkiln note "  # begins those that are
Say = Callable[[str], None]
_EVERY_S = 0.25
# The memory of arrays that are let go is used again. By default it goes back to the system, and every page of
# the next array is a fault. Scoring 6 GB layer by layer took 5 s of CPU less, of 30. Only glibc reads it.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
}
# mlx multiplies float32 on a GPU with 10 bits of each number (TF32), unless it is told not to. Scores are
# compared with those of other devices. What is generated is generated as it is served.
FLOAT32 = {"MLX_ENABLE_TF32": "0"}


class EvaluationFailed(BuildError):
    """eval:{target}: {what}"""

    exit_code = 2


def wanted_environment(request: Mapping[str, Any]) -> dict[str, str]:
    """Variables of the environment of a worker, where the user has not set them."""
    served = any(suite["kind"] == "generate" for suite in request.get("suites", ()))
    return {**(KEEP_MEMORY if request.get("layerwise") else {}), **({} if served else FLOAT32)}


def ask(target: str, request: Mapping[str, Any], emit: Emit, running: str = "") -> dict[str, Any]:
    """Starts a worker and returns its answer to the request. `emit` gets the worker's progress.

    `target` is named in errors. `running` is what the worker runs, where that is not the target.

    Raises the BuildError that the worker raised, or EvaluationFailed if the worker does not answer.
    """
    command = [sys.executable, "-m", "builder.evaluate.worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    said: list[str] = []
    stopped: list[BaseException] = []
    env = {**wanted_environment(request), **os.environ}
    with subprocess.Popen(command, text=True, errors="replace", env=env, **pipes) as process:  # type: ignore[call-overload]
        tell = _ending(process, emit, stopped)
        listener = Thread(target=_listen, args=(process.stderr, said, running or target, tell), daemon=True)
        listener.start()
        try:
            text = _exchange(process, request)
        except BaseException:  # for example Ctrl-C: the worker must end before its pipes are closed
            process.kill()
            raise
        finally:
            code = process.wait()
            listener.join()
    if stopped:
        raise stopped[0]
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        last = said[-1] if said else f"the scoring process ended with {code}"
        raise EvaluationFailed(target=target, what=last) from None
    if "error" in answer:
        raise error_from(answer["error"])
    return answer


def _ending(process: subprocess.Popen[str], emit: Emit, stopped: list[BaseException]) -> Emit:
    """`emit` is called in a thread. What it raises ends the worker, and is raised by `ask`."""

    def tell(event: Event) -> None:
        try:
            if not stopped:
                emit(event)
        except BaseException as error:
            stopped.append(error)
            process.kill()

    return tell


def _exchange(process: subprocess.Popen[str], request: Mapping[str, Any]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        json.dump(request, process.stdin)
        process.stdin.close()
    except BrokenPipeError:  # the worker ended at once, and stderr says why
        pass
    return process.stdout.read()


def _listen(stream: IO[str], said: list[str], target: str, emit: Emit) -> None:
    """Turns lines of progress into events. Keeps the last other line, to explain an unexpected end."""
    for line in stream:
        if line.startswith(MARK):
            done, total, unit = line.removeprefix(MARK).split()
            emit(Scored(target, int(done), int(total), unit))
        elif line.startswith(NOTE):
            emit(Note(f"{target}: {line.removeprefix(NOTE).strip()}"))
        elif line.strip():
            said[:] = [line.strip()]


def telling(unit: str = "questions") -> Step:
    """For the worker: a step that writes progress to stderr, at most four times a second and at the end.

    `unit`: of what is done, as in `Scored`.
    """
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _EVERY_S:
            last = time.monotonic()
            sys.stderr.write(f"{MARK}{done} {total} {unit}\n")
            sys.stderr.flush()

    return tell


def say(text: str) -> None:
    """For the worker: tells people something, in one line."""
    sys.stderr.write(f"{NOTE}{text}\n")
    sys.stderr.flush()


def unsaid(text: str) -> None:
    """Tells nobody."""


def untold(done: int, total: int) -> None:
    """A step that reports nothing."""
