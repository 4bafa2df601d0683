"""Runs a module as `python -m` does, and leaves behind what it cost: probe.py OUT MODULE [ARGUMENT...].

OUT gets JSON: seconds of CPU, and how many of them in the kernel, page faults, peak bytes of memory, bytes
that passed through read and through write.
"""

from __future__ import annotations

import atexit
import json
import resource
import runpy
import sys
from pathlib import Path


def peak() -> int:
    """Peak bytes of this process's memory.

    Linux's ru_maxrss begins with the size of the process that started this one, its VmHWM with nothing.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def leave(out: Path) -> None:
    try:
        io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        io = {}
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"cpu": used.ru_utime + used.ru_stime, "peak": peak()}
    cost |= {"system": used.ru_stime, "faults": used.ru_minflt + used.ru_majflt}
    cost |= {"read": int(io.get("rchar", 0)), "written": int(io.get("wchar", 0))}
    out.write_text(json.dumps(cost))


def main() -> None:
    _, out, module, *rest = sys.argv
    sys.path[0] = ""  # not this folder, but the current one, as with -m
    atexit.register(leave, Path(out))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
