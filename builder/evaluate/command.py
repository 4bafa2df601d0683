"""Figures that somebody else's program measures: it prints one JSON object of numbers."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from builder.errors import BuildError
from builder.evaluate.statistics import Figure
from builder.spec import Suite


class CommandFailed(BuildError):
    """suite {suite}: {command}: {what}"""

    exit_code = 2
    hint = "The command must end with 0 and print its figures as one JSON object of numbers."


def run_command(suite: Suite, model: Path, folder: Path) -> dict[str, Figure]:
    """Runs the command in `folder`; what it prints before its last line does not matter.

    Raises CommandFailed.
    """
    words = [word.replace("{model}", str(model)) for word in shlex.split(suite.command)]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise CommandFailed(suite=suite.name, command=suite.command, what=str(error)) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        what = f"ended with {done.returncode}" + (f": {last[0]}" if last else "")
        raise CommandFailed(suite=suite.name, command=suite.command, what=what)
    for text in (done.stdout, done.stdout.strip().rpartition("\n")[2]):
        try:
            figures = _figures(json.loads(text))
        except ValueError:
            continue
        if figures:
            return figures
    raise CommandFailed(suite=suite.name, command=suite.command, what="printed no JSON object of numbers")


def _figures(data: object) -> dict[str, Figure]:
    """The numbers of an object; a key `n` says how many observations they come from."""
    if not isinstance(data, dict):
        return {}
    numbers = {k: v for k, v in data.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    n = int(numbers.pop("n", 1))
    return {key: Figure(float(value), float(value), float(value), n) for key, value in numbers.items()}
