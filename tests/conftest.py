"""Shared fixtures: real projects in temporary folders, real doit runs in subprocesses.

No test needs the network, and none writes into the checkout: both are watched here.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings

from builder.commands import COMMANDS
from builder.project.project import store_of
from builder.spec.parse import parse_spec

# Seconds after which whatever a test waits for counts as hanging. It measures nothing: a busy machine passes.
PATIENCE = 600

# Machines are shared and slow at times: no example has a deadline. A failure says how to repeat it.
settings.register_profile("patient", deadline=None, print_blob=True)
settings.load_profile("patient")

# A job that a shell started in the background ignores Ctrl-C, and so would every command that a test runs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The hub's client asks nobody, here and in every command that a test runs.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests run side by side. More threads for each would only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# On a GPU mlx would multiply float32 with 10 bits of each number. Many tests compare with float64.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

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

    def doit(self, *args: str, env: dict[str, str] | None = None) -> Ran:
        return self.run(sys.executable, "-m", "doit", *args, env=env)

    def builder(self, *args: str, env: dict[str, str] | None = None) -> Ran:
        return self.run(sys.executable, "-m", "builder.commands.main", *args, env=env)

    def run(self, *command: str, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
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

    def clone(self, name: str) -> Sandbox:
        """What git would give another person, beside this folder. The base and the adapter are there too."""
        folder = self.root.parent / name
        shutil.copytree(self.root, folder, ignore=shutil.ignore_patterns("store", ".modelkiln.db*"))
        return Sandbox(folder)

    def view(self, target: str) -> Path:
        """Of a store in the project's folder."""
        return self.root / "store" / "models" / target

    @property
    def models(self) -> Path:
        """Where the views of this checkout are, also in a store that lies elsewhere."""
        return store_of(parse_spec(self.toml)).models


def fresh_python(code: str, *arguments: str) -> str:
    """What a new interpreter prints that runs `code` in an empty folder."""
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Waits for what can be seen from outside. Fails where `process` ends before, or nothing ever happens."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, f"it ended with {process and process.returncode}"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@pytest.fixture
def seed() -> int:
    """For a test that draws. Another one in each run; MODELKILN_SEED repeats the one that a failure shows."""
    chosen = int(os.environ.get("MODELKILN_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MODELKILN_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the program, and every command that a test runs, keeps what it knows of this user."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


# -- no network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A connection of this process to anything but this machine fails the test, whoever catches errors."""

    def refuse(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if not (name in (None, "", "localhost", "::1") or str(name).startswith("127.")):
            pytest.fail(f"a test asks the network for {name}")

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(address[0])
            return real(self, address)

        return connect

    def look_up(host: Any, *more: Any, **options: Any) -> Any:
        refuse(host)
        return look_up_anything(host, *more, **options)

    look_up_anything = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", watched(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", look_up)
        yield


# -- nothing is written into the checkout -------------------------------------------------------------------


def state_of_the_checkout(root: Path = ROOT) -> dict[str, str] | None:
    """What git shows as changed or new, and the files of the store and of doit's databases with their times.

    None where this is not a git checkout.
    """
    command = ["git", "--no-optional-locks", "status", "--porcelain", "--ignored=no"]
    try:
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE)
    except OSError:
        return None
    if git.returncode != 0:
        return None
    state = {line[3:]: line[:2] for line in git.stdout.splitlines()}
    for path in (*(root / "store").rglob("*"), *root.glob(".*.db*")):
        if not path.is_dir():
            state[str(path.relative_to(root))] = str(path.lstat().st_mtime_ns)
    return state


CHECKOUT = pytest.StashKey[dict[str, str] | None]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # once for all processes of a run
        session.config.stash[CHECKOUT] = state_of_the_checkout()


def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(CHECKOUT, None)
    if before is None:
        return
    after = state_of_the_checkout() or {}
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        print(f"\nERROR: during the tests the checkout changed: {', '.join(changed)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
