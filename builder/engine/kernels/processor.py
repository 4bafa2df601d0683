"""This machine's CPU, as LLVM describes it to whoever compiles for it."""

from __future__ import annotations

from typing import Any

_WIDE = "+avx512vbmi2"  # CPUs that have it do not become slower by vectors of 512 bits


def name() -> str:
    """The name of this kind of CPU."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


def features() -> str:
    """What this CPU can do. LLVM alone would use only half of the vectors of some Intel CPUs."""
    return _own() + (",-prefer-256-bit" if is_wide() else "")


def is_wide() -> bool:
    """Whether the loops use vectors of 512 bits."""
    return _WIDE in _own().split(",")


def target() -> Any:
    """An llvmlite TargetMachine, as numba makes it (numba.core.codegen.JITCPUCodegen)."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = llvm.Target.from_triple(llvm.get_process_triple())
    return found.create_target_machine(
        cpu=name(),
        features=features(),
        opt=3,
        reloc="static" if found.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _own() -> str:
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_features().flatten())
