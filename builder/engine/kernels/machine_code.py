"""Compiles the loops of `jitted` to one object file for `compiled`, which needs neither numba nor Python."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types

from builder.engine.kernels import jitted
from builder.engine.kernels.signatures import SIGNATURES, CannotCompile


def make(machine: Any, size: int) -> bytes:
    """An object file with the loops for stored values of `size` bits, under the names that `compiled` uses.

    machine: an llvmlite TargetMachine. Raises CannotCompile if the functions that numba makes have another
    type than `compiled` expects, or if the loops call functions of numba or Python.
    """
    whole = llvm.parse_assembly("")
    for name, symbol, text in _loops(size):
        module = llvm.parse_assembly(text)
        arguments = ("i64" if letter == "i" else "ptr" for letter in SIGNATURES[name])
        found = str(module.get_function(symbol).global_value_type)
        if found != f"i32 ({', '.join(('ptr', 'ptr', *arguments))})":
            raise CannotCompile(f"numba {version('numba')} makes functions of the type {found}")
        for function in module.functions:
            if not function.is_declaration and function.name != symbol:
                function.linkage = "internal"
        module.get_function(symbol).name = name
        whole.link_in(module)
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(whole, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    for function in whole.functions:  # LLVM ends the process when it loads calls of missing functions
        if function.is_declaration and not function.name.startswith("llvm."):
            raise CannotCompile(f"numba {version('numba')} lets the loops call {function.name}")
    code: bytes = machine.emit_object(whole)
    return code


def _loops(size: int) -> Iterator[tuple[str, str, str]]:
    """Yields name, symbol and LLVM IR of each loop that Python calls, for stored values of `size` bits.

    As numba compiles them, the loops take a pointer to their result, a pointer to an exception, and their
    arguments. They never set the exception, and they return 0.
    """
    i64, pointers = types.int64, types.CPointer(types.voidptr)
    table, sums = types.CPointer(i64), types.CPointer(types.float64)
    untyped, word, floats = types.voidptr, types.CPointer(types.uint32), types.CPointer(types.float32)
    raw = types.CPointer(getattr(types, f"uint{size}"))
    quantize = i64(i64, raw, raw, i64, i64, i64, table, i64, word, i64, raw, i64, sums, pointers)
    dequantize = i64(i64, untyped, raw, raw, i64, i64, i64, i64, untyped, pointers)
    signatures = {
        jitted.quantize_span: quantize,
        jitted.dequantize_span: dequantize,
        jitted.widen_span: i64(i64, raw, i64, i64, word),
        jitted.fuse_rows: i64(i64, raw, floats, floats, i64, i64, i64, i64, raw, pointers),
    }
    for function, signature in signatures.items():
        compiled = numba.njit(signature, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(
            function
        )
        (made,) = compiled.overloads.values()
        yield function.__name__, made.fndesc.llvm_func_name, made.library.get_llvm_str()
