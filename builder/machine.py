"""What the machine has."""

from __future__ import annotations

import os
from pathlib import Path

_AVX512 = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
_ZEN5 = 26  # AMD's families from this one on are not known to OpenBLAS 0.3.34
_FIRST = 8192  # characters of /proc/cpuinfo that describe the first core


def memory() -> int:
    """Bytes of memory of this machine. 0 where nobody can tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def core_environment(cpus: str | None = None) -> dict[str, str]:
    """The variable that tells OpenBLAS which CPU this is, where OpenBLAS does not see it.

    OpenBLAS 0.3.34 takes AMD's Zen 5 for a CPU without AVX-512, and multiplies at half the speed. It reads
    the variable when it is loaded. `cpus`: what /proc/cpuinfo says. None: read it.
    """
    if cpus is None:
        try:
            with Path("/proc/cpuinfo").open() as file:
                cpus = file.read(_FIRST)
        except OSError:
            return {}
    fields = (line.partition(":") for line in cpus.partition("\n\n")[0].splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in fields}
    family = cpu.get("cpu family", "")
    known = cpu.get("vendor_id") != "AuthenticAMD" or not family.isdigit() or int(family) < _ZEN5
    if known or not set(cpu.get("flags", "").split()) >= _AVX512:
        return {}
    return {"OPENBLAS_CORETYPE": "SkylakeX"}
