"""Pushes, pulls or collects, and kills itself at one step: `python -m tests.remote.killed WHAT FILE STEP`.

Exit code 0: it had fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from builder.build import sharing
from builder.remote.connect import open_remote
from builder.remote.contents import look
from builder.remote.gc import Policy, collect
from builder.remote.push import push
from builder.remote.transport import Transport
from tests.remote.team import Heard, Member, Stepping


def do(what: str, one: Member, transport: Transport) -> None:
    """One of the three, through this transport."""
    if what == "push":
        push(one.store, transport, one.bundles(["m_4bit"]), None, Heard())
    elif what == "gc":
        collect(transport, Policy(grace=0.0), Heard())
    else:
        project = one.project
        found = sharing.Opened(one.remote, look(transport), sharing.rules_of(project, one.remote))
        plans = [one.plan("m_4bit")]
        sharing.take(project, found, sharing.wanted_of(project, plans), Heard(), plans)


def dying(step: int) -> Callable[[str], None]:
    """Kills this process at its step of that number, as the kernel or a person would."""
    done = [0]

    def count(_: str) -> None:
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1

    return count


def main() -> None:
    what, file, step = sys.argv[1:]
    one = Member(Path(file))
    transport = open_remote(one.remote)
    do(what, one, Stepping(transport, dying(int(step))))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
