"""A command in a terminal of its own, of a chosen width, with answers typed into it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

from tests.conftest import PATIENCE, Ran, Sandbox


def in_terminal(
    box: Sandbox, *command: str, columns: int = 80, typed: Sequence[tuple[str, str]] = (), under: str = ""
) -> Ran:
    """What `builder ...` or `doit ...` shows on a terminal. typed: (what is awaited, what is typed then)."""
    program = {"builder": "builder.commands.main", "doit": "doit"}[command[0]]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", program, *command[1:]],
        cwd=box.root / under,
        env={**environment, "TERM": "xterm", "NO_COLOR": "1", "BUILDER_PROGRESS": "plain"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    text, answers, end = "", list(typed), time.monotonic() + PATIENCE
    while select.select([master], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            text += os.read(master, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if answers and answers[0][0] in text:
            os.write(master, answers.pop(0)[1].encode())
    os.close(master)
    return Ran(process.wait(timeout=PATIENCE), text.replace("\r\n", "\n"), "")
