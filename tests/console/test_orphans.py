"""Kill -9 of a run ends the processes that work for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until

# What each process would begin with, replaced by something that takes longer than any test.
WORKERS = {
    "builder.training.__main__": "from_text",
    "builder.evaluate.worker.__main__": "answer_to",
    "builder.engine.quantizer": "LearnedRequest",
}
CHILD = """\
import os, time
import {module} as worker

def work(*_, **__):
    os.write(1, b"at work\\n")
    time.sleep(600)

worker.{work} = work
worker.main()
"""
PARENT = """\
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE, text=True)
child.stdin.write("{}")
child.stdin.close()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("module", WORKERS)
def test_a_worker_ends_with_the_run_that_started_it(tmp_path: Path, module: str) -> None:
    request = tmp_path / "request.json"
    request.write_text("{}")
    child = CHILD.format(module=module, work=WORKERS[module])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, child, str(request)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "at work\n"
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")
