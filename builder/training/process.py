"""Talks to the process that trains: sends the request, tells the progress, hands over the checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import IO, Any

from builder.console.events import Emit, Learning, Note, Trained
from builder.errors import error_from
from builder.training.request import Request, TrainingFailed

_SMOOTH = 0.1  # how much the last step counts for the speed that is shown


def run(request: Request, emit: Emit, keep: Callable[[int, Path], None]) -> Mapping[str, Any]:
    """Trains in a process of its own, and returns what it said last.

    `keep` gets each checkpoint: the step, and a file that is deleted afterwards. Raises the BuildError that
    the process raised, and TrainingFailed if it ended in another way.
    """
    command = [sys.executable, "-m", "builder.training"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    said: list[str] = []
    answer: Mapping[str, Any] = {}
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as process:  # type: ignore[call-overload]
        listener = Thread(target=_listen, args=(process.stderr, said), daemon=True)
        listener.start()
        try:
            answer = _exchange(process, request, emit, keep)
        except BaseException:  # for example Ctrl-C: the process must end before its pipes are closed
            process.kill()
            raise
        finally:
            code = process.wait()
            listener.join()
    if "error" in answer:
        raise error_from(answer["error"])
    if "blas" not in answer:
        what = said[-1][:300] if said and code > 0 else f"the training process ended with {code}"
        raise TrainingFailed(adapter=request.adapter, what=what)
    return answer


def _exchange(
    process: subprocess.Popen[str], request: Request, emit: Emit, keep: Callable[[int, Path], None]
) -> Mapping[str, Any]:
    """The last line that the process said."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request.to_text())
        process.stdin.close()
    except BrokenPipeError:  # the process ended at once, and stderr says why
        pass
    name, total, speed = f"adapter:{request.adapter}", request.training.iterations, 0.0
    answer: Mapping[str, Any] = {}
    for line in process.stdout:
        answer = json.loads(line) if line.endswith("\n") else {}  # a killed process may leave half a line
        if "note" in answer:
            emit(Note(f"{name}: {answer['note']}"))
        elif "checkpoint" in answer:
            file = request.out / Path(answer["file"]).name
            keep(answer["checkpoint"], file)
            file.unlink()
        elif "part" in answer:
            emit(Learning(name, answer["part"], answer["done"], answer["of"], None))
        elif "step" in answer:
            now = answer["tokens"] / max(answer["seconds"], 1e-9)
            speed = now if not speed else (1 - _SMOOTH) * speed + _SMOOTH * now
            emit(Trained(name, answer["step"], total, answer["loss"], speed))
    return answer


def _listen(stream: IO[str], said: list[str]) -> None:
    """Keeps the last line, to explain an unexpected end."""
    for line in stream:
        if line.strip():
            said[:] = [line.strip()]
