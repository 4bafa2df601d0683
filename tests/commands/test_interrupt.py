"""Ctrl-C: at once, one line, exit code 130, what is finished is kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
LINE = "Interrupted. Finished blocks are kept; the same command goes on from there."
INTERRUPTED = (130, -signal.SIGINT)  # the second is what a shell shows as 130


@pytest.fixture
def big(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_base(box.root / "base", layers=200)
    make_adapter(box.root / "adapter")
    return box


def start(box: Sandbox, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=box.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str, float]:
    """As a terminal does it: to the whole group."""
    import os

    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    out, err = process.communicate(timeout=30)
    return out, err, time.monotonic() - start


def records(box: Sandbox) -> list[Path]:
    return list((box.root / "store" / "actions").glob("*/*"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.parametrize(
    "command",
    [["doit"], ["doit", "-n", "2"], ["doit", "-n", "2", "-P", "thread"], ["builder.commands.main", "build"]],
    ids=" ".join,
)
def test_during_a_pass(big: Sandbox, command: list[str]) -> None:
    process = start(big, *command)
    wait_for(lambda: len(records(big)) >= 15, process)
    out, err, seconds = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert err.count(LINE) == 1, err
    assert seconds < 5
    assert len(records(big)) >= 15
    assert not big.view("m_4bit").exists()


SUITE = """suites = ["calls"]

[suite.calls]
kind = "exact"
data = "rows.jsonl"
"""


def test_during_an_evaluation(sandbox: Make) -> None:
    box = sandbox(DECLARATION + SUITE)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    rows = (f'{{"prompt": "{n} {"word " * 50}", "completion": "yes"}}\n' for n in range(3000))
    (box.root / "rows.jsonl").write_text("".join(rows))
    assert box.doit("model:m_4bit").code == 0
    process = start(box, "doit", "run", "--progress", "json", "eval:m_4bit")
    assert process.stderr is not None
    seen = next(line for line in process.stderr if '"Scored"' in line)
    assert '"done": 3000' not in seen
    out, err, _ = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert "Exception in thread" not in out + err
    assert not list((box.root / "store" / "evals").rglob("*.json"))


def test_during_listing(big: Sandbox) -> None:
    slow = "import time\n\ndef task_slow():\n    open('listing', 'w')\n    time.sleep(20)\n    yield {}\n"
    (big.root / "dodo.py").write_text((big.root / "dodo.py").read_text() + slow)
    process = start(big, "doit", "list")
    wait_for((big.root / "listing").exists, process)
    out, err, _ = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert LINE in err
