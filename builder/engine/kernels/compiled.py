"""Calls the loops of `builder.engine.kernels.jitted` from Python. A machine compiles the loops only once.

Importing numba and reading numba's own cache takes 0.9 s in every process that computes anything. The machine
code itself is 80 KB. So the machine code is kept in the user's cache directory, for this version of the
loops, of numba and of LLVM, and for this kind of CPU. llvmlite alone loads the machine code in 0.05 s.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.engine.kernels import processor
from builder.engine.kernels.signatures import CHUNK, SCRATCH, SIGNATURES, TILE, CannotCompile

Array = npt.NDArray[Any]

_APART = 48  # words between two pieces: at multiples of 4 KiB they would evict each other from the cache
_LINE = 64  # bytes: vectors that begin elsewhere lie in two lines of the cache

# The modules that the code depends on.
_MAKERS = ("jitted", "machine_code", "processor", "compiled", "signatures")
_DIGEST = hashlib.sha256().digest_size
_LOADING = Lock()


def cache_directory() -> Path:
    """The folder for compiled code, in this user's cache directory."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "modelkiln"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelkiln"


def quantize_span(
    kind: int,
    raw: Array,
    first: int,
    last: int,
    settings: npt.NDArray[np.int64],
    codes: npt.NDArray[np.uint32],
    params: Array,
    original: Array,
    sums: npt.NDArray[np.float64],
) -> int:
    """Calls `jitted.quantize_span` on C-contiguous arrays. All are flat, except for settings and sums.

    `original` is empty when nothing is to be measured. The GIL is released during the call. Raises
    CannotCompile.
    """
    memory = np.empty((SCRATCH, CHUNK + _APART), np.uint32)
    pieces = _rows(memory)
    return _call(
        "quantize_span",
        8 * raw.itemsize,
        kind,
        raw.ctypes.data,
        original.ctypes.data,
        original.size,
        first,
        last,
        settings.ctypes.data,
        len(settings),
        codes.ctypes.data,
        codes.size,
        params.ctypes.data,
        params.size,
        sums.ctypes.data,
        pieces.ctypes.data,
    )


def dequantize_span(
    kind: int,
    codes: Array,
    scales: Array,
    biases: Array,
    setting: tuple[int, int],
    first: int,
    last: int,
    out: npt.NDArray[np.float32],
) -> None:
    """Calls `jitted.dequantize_span` on C-contiguous arrays. The GIL is released during the call.

    `setting`: bits and group size. Raises CannotCompile.
    """
    memory = np.empty((SCRATCH, CHUNK + _APART), np.uint32)
    pieces = _rows(memory)
    _call(
        "dequantize_span",
        8 * scales.itemsize,
        kind,
        codes.ctypes.data,
        scales.ctypes.data,
        biases.ctypes.data,
        *setting,
        first,
        last,
        out.ctypes.data,
        pieces.ctypes.data,
    )


def widen_span(kind: int, raw: Array, first: int, last: int, out: npt.NDArray[np.float32]) -> None:
    """Calls `jitted.widen_span` on C-contiguous arrays. The GIL is released during the call.

    Raises CannotCompile.
    """
    _call("widen_span", 8 * raw.itemsize, kind, raw.ctypes.data, first, last, out.ctypes.data)


def fuse_rows(
    kind: int,
    raw: Array,
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    first: int,
    last: int,
    out: Array,
) -> None:
    """Calls `jitted.fuse_rows` on C-contiguous arrays of two dimensions. The GIL is released during the call.

    Raises CannotCompile.
    """
    memory = np.empty((2, TILE + _APART), np.uint32)
    pieces = _rows(memory)
    _call(
        "fuse_rows",
        8 * raw.itemsize,
        kind,
        raw.ctypes.data,
        left.ctypes.data,
        right.ctypes.data,
        right.shape[0],
        raw.shape[1],
        first,
        last,
        out.ctypes.data,
        pieces.ctypes.data,
    )


def in_lines(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A copy that begins at the begin of a line of the cache."""
    whole = np.empty(array.size + _LINE // array.itemsize, array.dtype)
    first = -whole.ctypes.data % _LINE // array.itemsize
    made = whole[first : first + array.size].reshape(array.shape)
    made[...] = array
    return made


def _rows(memory: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Pointers into the rows of an array, to the begins of lines of the cache, uint64."""
    start, step = memory.ctypes.data, memory.strides[0]
    start += -start % _LINE
    return np.array([start + row * step for row in range(len(memory))], np.uint64)


def _call(name: str, size: int, *arguments: int) -> int:
    loops = load(size)
    if loops is None:
        raise CannotCompile("the loops cannot be used here")
    result = ctypes.c_int64()
    status = loops.functions[name](ctypes.addressof(result), 0, *arguments)
    assert status == 0, f"{name} ended with {status}"  # the loops raise nothing
    return result.value


# -- loading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loops:
    """The loops by name. `engine` keeps their code in memory."""

    functions: Mapping[str, Callable[..., int]]
    engine: object


def load(size: int) -> Loops | None:
    """The loops for stored values of `size` bits, compiled first if this machine has no compiled code.

    None, with a warning, if that fails.
    """
    with _LOADING:
        return _loaded(size)


def is_kept(size: int) -> bool:
    """Whether `load` will find compiled code."""
    try:
        return _kept(size).exists()
    except ImportError:
        return False


@functools.cache
def _loaded(size: int) -> Loops | None:
    try:
        code = _read(_kept(size))
        if code is None:
            code = _compiled(size)
            _keep(_kept(size), code)
        return _functions(code)
    except Exception as error:  # numba or LLVM is not as expected. mlx gives the same result more slowly
        warnings.warn(
            f"compiled kernels cannot be used, mlx is slower: {error}", RuntimeWarning, stacklevel=2
        )
        return None


def _compiled(size: int) -> bytes:
    import numba

    numba.config.CPU_FEATURES = processor.features()  # numba looks once, when it meets its first function
    from builder.engine.kernels.machine_code import make

    return make(processor.target(), size)


def _functions(code: bytes) -> Loops:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), processor.target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    functions = {}
    for name, arguments in SIGNATURES.items():
        kinds = [ctypes.c_int64 if letter == "i" else ctypes.c_void_p for letter in arguments]
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)
        functions[name] = prototype(engine.get_function_address(name))
    return Loops(functions, engine)


@functools.cache
def _kept(size: int) -> Path:
    """The file for the code of these loops, this numba, this LLVM and this CPU."""
    here = Path(__file__).parent
    texts = [(here / f"{name}.py").read_text() for name in _MAKERS]
    stamp = "\n".join([version("numba"), version("llvmlite"), processor.name(), processor.features(), *texts])
    return cache_directory() / f"loops-{size}-{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.o"


def _read(path: Path) -> bytes | None:
    """The code in a file. None if the file is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST], content[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(path: Path, code: bytes) -> None:
    """Writes code to a file. Where that is not possible, every process compiles."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
