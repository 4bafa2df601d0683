"""Ctrl-C: at once, one line, exit code 130, what is finished is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Sandbox, wait_until
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


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """As a terminal does it: to the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=PATIENCE)


def records(box: Sandbox) -> list[Path]:
    return list((box.root / "store" / "actions").glob("*/*"))


@pytest.mark.parametrize(
    "command",
    [["doit"], ["doit", "-n", "2"], ["doit", "-n", "2", "-P", "thread"], ["builder.commands.main", "build"]],
    ids=" ".join,
)
def test_during_a_pass(big: Sandbox, command: list[str]) -> None:
    process = start(big, *command)
    wait_until(lambda: len(records(big)) >= 15, process)
    out, err = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert err.count(LINE) == 1, err
    assert 15 <= len(records(big)) < 2 * 202  # it did not go on to the end
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
    out, err = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert "Exception in thread" not in out + err
    assert "Suites that were measured are kept; the same command measures the others." in err
    assert not list((box.root / "store" / "evals").rglob("*.json"))


def test_during_listing(big: Sandbox) -> None:
    endless = (
        "import time\n\ndef task_endless():\n    open('listing', 'w')\n    time.sleep(3600)\n    yield {}\n"
    )
    (big.root / "dodo.py").write_text((big.root / "dodo.py").read_text() + endless)
    process = start(big, "doit", "list")
    wait_until((big.root / "listing").exists, process)
    out, err = interrupt(process)
    assert process.returncode in INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert "Interrupted. Nothing was changed." in err
