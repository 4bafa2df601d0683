"""Up to four real commands at once in one store: they build, clean, collect, verify and are killed.

Then it is quiet: verify finds nothing, and whatever is built equals a clean build. MODELKILN_SOAK_S: for how
many seconds. MODELKILN_SEED repeats the commands, though not their timing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Sandbox
from tests.soak.world import CHECKOUTS, SHARED, Declaration, files_of, first_declaration, make_pool

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("MODELKILN_SOAK_S") or 75)
AT_ONCE = 4
TARGETS = ("m_f16", "m_v4", "m_v8", "n_v4", "k_v4", "k_v8")
COMMANDS = (
    *[("build", ())] * 4,
    *[("build", (f"model:{target}",)) for target in TARGETS],
    ("clean", ("clean:v4",)),
    ("clean", ("clean:m_f16",)),
    ("clean", ("clean:k_v8",)),
    *[("gc", ("gc", "--grace", "0"))] * 2,
    *[("verify", ("verify", "--json"))] * 3,
    ("status", ("status", "--json")),
    ("plan", ("plan", "--json")),
)


def plain(store: str | None) -> Declaration:
    """Without learned targets: their real steps take longer than the whole soak."""
    declared = first_declaration(store)
    del declared.variants["q"]
    declared.models = {
        name: (of, [variant for variant in variants if variant != "q"])
        for name, (of, variants) in declared.models.items()
    }
    declared.bases = {"b": "pool/x", "g": "pool/x.gguf"}
    declared.adapters = {"a": ("b", "pool/a1"), "c": ("g", "pool/a2")}
    return declared


@dataclass
class Command:
    """A process that was started, and where it writes."""

    checkout: Sandbox
    kind: str
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]
    out: Path
    killed: bool = False

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace")


@dataclass
class Soak:
    root: Path
    environment: dict[str, str]
    boxes: dict[str, Sandbox]
    draw: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    running: list[Command] = field(default_factory=list)

    def start(self) -> None:
        box = self.boxes[self.draw.choice(SHARED)]
        kind, arguments = self.draw.choice(COMMANDS)
        if self.draw.random() < 0.2:
            switch(box, self.draw)
        out = self.root / f"out-{sum(self.counts.values())}"
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "doit", *arguments],
                cwd=box.root,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.counts[kind] += 1
        self.running.append(Command(box, kind, arguments, process, out))

    def kill_one(self) -> None:
        command = self.draw.choice(self.running)
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.killed = True
            self.counts["killed"] += 1

    def collect(self) -> None:
        for command in [c for c in self.running if c.process.poll() is not None]:
            self.running.remove(command)
            if not command.killed:
                self.judge(command)
            command.out.unlink()

    def judge(self, command: Command) -> None:
        """No traceback, no error, and no damage: nothing damages anything."""
        text, code = command.text, command.process.returncode
        incomplete = command.kind in ("status", "plan") and code == 1  # something is not built
        if "Traceback" in text or not (code == 0 or incomplete):
            said = f"doit {' '.join(command.arguments)}: {code}\n{text}"
            self.wrong.append(f"{command.checkout.root.name}: {said}")


def switch(box: Sandbox, draw: random.Random) -> None:
    """Both bases to another file of the same shapes, and some day back; one variant to other bits."""
    declared = plain("../store")
    which = draw.choice(("x", "y"))
    declared.bases = {"b": f"pool/{which}", "g": f"pool/{which}.gguf"}
    declared.variants["v4"]["bits"] = draw.choice((4, 4, 3))
    new = box.root / "artifacts.toml.new"
    new.write_text(declared.text())
    new.replace(box.toml)


@pytest.fixture
def soak(tmp_path: Path, sandbox: Callable[..., Sandbox], seed: int) -> Soak:
    make_pool(tmp_path / "pool")
    stores = {name: "../store" if name in SHARED else None for name in CHECKOUTS}
    boxes = {name: sandbox(plain(store).text(), name) for name, store in stores.items()}
    environment = {**os.environ, "NO_COLOR": "1", "XDG_STATE_HOME": str(tmp_path / "state")}
    return Soak(tmp_path, environment, boxes, random.Random(seed))


def test_four_processes_in_one_store(soak: Soak) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not soak.wrong:
        if len(soak.running) < AT_ONCE:
            soak.start()
        elif soak.draw.random() < 0.02:
            soak.kill_one()
        time.sleep(0.02)
        soak.collect()
    for command in soak.running:
        command.process.wait(PATIENCE)
    soak.collect()
    print(f"{sum(soak.counts.values()) - soak.counts['killed']} commands, {soak.counts['killed']} kills")
    print(dict(soak.counts))
    assert not soak.wrong, "\n\n".join(soak.wrong)
    compared = sum(right(soak, name) for name in SHARED)
    assert compared


def right(soak: Soak, name: str) -> int:
    """All is quiet. verify is clean, and what is built is right, before one more build and after it."""
    box, environment = soak.boxes[name], {"XDG_STATE_HOME": soak.environment["XDG_STATE_HOME"]}
    report = box.doit("verify", "--json", env=environment)
    assert report.code == 0, report.text
    clean = soak.boxes["own"]
    clean.toml.write_text(box.toml.read_text().replace('[store]\npath = "../store"\n', ""))
    shutil.rmtree(clean.root / "store", ignore_errors=True)
    everything = [f"model:{target}" for target in TARGETS]
    assert clean.doit(*everything, env=environment).code == 0
    (home,) = (soak.root / "store/checkouts").glob(f"{name}-*")
    compared = 0
    for _ in range(2):
        status = json.loads(box.doit("status", "--json", env=environment).out)
        for row in status["targets"]:
            if row["state"] == "built" and row["target"] in TARGETS:
                compared += 1
                assert files_of(home / "models" / row["target"]) == files_of(clean.view(row["target"]))
        ran = box.doit(*everything, env=environment)
        assert ran.code == 0, ran.text
    return compared
