"""Shared fixtures: real projects in temporary folders, real doit runs in subprocesses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from builder.commands import COMMANDS

# Machines are shared and slow at times: no example has a deadline.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A job that a shell started in the background ignores Ctrl-C, and so would every command that a test runs.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Sandbox:
    """A project folder in which doit runs as a user would run it."""

    root: Path

    def doit(self, *args: str, env: dict[str, str] | None = None, timeout: float = 100) -> Ran:
        return self.run(sys.executable, "-m", "doit", *args, env=env, timeout=timeout)

    def builder(self, *args: str, env: dict[str, str] | None = None) -> Ran:
        return self.run(sys.executable, "-m", "builder.commands.main", *args, env=env)

    def run(self, *command: str, env: dict[str, str] | None = None, timeout: float = 100) -> Ran:
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    @property
    def toml(self) -> Path:
        return self.root / "artifacts.toml"

    def edit(self, old: str, new: str) -> None:
        text = self.toml.read_text()
        assert old in text
        self.toml.write_text(text.replace(old, new))

    def view(self, target: str) -> Path:
        return self.root / "store" / "models" / target


def make_sandbox(root: Path, declaration: str) -> Sandbox:
    """A project folder with dodo.py and that declaration."""
    root.mkdir(parents=True)
    shutil.copy(ROOT / "dodo.py", root)
    (root / "pyproject.toml").write_text(
        "[tool.doit.commands.list]\nsubtasks = true\n[tool.doit.plugins.command]\n"
        + "".join(f'{name} = "{place}"\n' for name, place in COMMANDS.items())
    )
    (root / "artifacts.toml").write_text(declaration)
    return Sandbox(root)


@pytest.fixture
def sandbox(tmp_path: Path) -> Callable[[str], Sandbox]:
    """make(artifacts_toml) -> a project folder in the test's own folder."""

    def make(declaration: str, name: str = "project") -> Sandbox:
        return make_sandbox(tmp_path / name, declaration)

    return make
