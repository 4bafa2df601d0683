"""Gives mlx a faster matrix product on Linux CPUs, in the processes of scoring and of learned quantizers.

A pass never does this: its bits are those of mlx-lm.

The mlx wheel for Linux has the reference BLAS: about 5 GFLOP/s on one core, where OpenBLAS makes 50. The PyPI
package scipy-openblas32 has an OpenBLAS whose names begin with `scipy_`. This module
points the cblas entries in libmlx's table of imported functions to that OpenBLAS. Nothing on disk changes.
Without the package nothing happens. The same products are computed before and after. Where they differ by
more than rounding, the former entries are restored.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_FUNCTIONS = (b"cblas_sgemm",)
# What `accelerate` has done: what multiplies now, and the places in the table with their former and their
# present addresses. At most one entry.
_POINTED: list[tuple[str, list[tuple[int, int]], list[tuple[int, int]]]] = []
_TABLES = (b".rela.plt", b".rela.dyn")
_READ_WRITE = 3


def accelerate(threads: int | None = None) -> str:
    """Points mlx to OpenBLAS where that is possible. `threads` None: as many as are fastest now.

    Returns what multiplies matrices now, for the result: "mlx", or for example "openblas with 2 threads".
    """
    if not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"):
        return "mlx"
    library = _package("scipy_openblas32", "lib/libscipy_openblas.so")
    ours = _package("mlx", "lib/libmlx.so")
    if library is None or ours is None or os.environ.get("BUILDER_BLAS") == "mlx":
        return "mlx"
    importlib.import_module("mlx.core")  # loads libmlx

    openblas = ctypes.CDLL(str(library))
    start = _loaded_at(ours)
    if start is None:
        return "mlx"
    if _POINTED:
        return _POINTED[-1][0]
    before = _products()
    wanted = [(start + at, _address(openblas, name)) for name, at in _imports(ours)]
    replaced = [(place, _replace(place, address)) for place, address in wanted]
    if not replaced:
        return "mlx"
    if all(abs(new - old) <= 1e-3 * max(1.0, abs(old)) for new, old in zip(_products(), before, strict=True)):
        if threads is not None:
            openblas.scipy_openblas_set_num_threads(threads)
        elif "OPENBLAS_NUM_THREADS" not in os.environ:
            _choose_threads(openblas.scipy_openblas_set_num_threads)
        threads = openblas.scipy_openblas_get_num_threads()
        kind = f"openblas with {threads} thread{'s' if threads > 1 else ''}"
        _POINTED.append((kind, replaced, wanted))
        return kind
    for place, former in replaced:  # OpenBLAS has another calling convention than we think: undo
        _replace(place, former)
    return "mlx"


@contextmanager
def accelerated(threads: int | None = None) -> Iterator[str]:
    """`accelerate`, until the block ends. Gives what it returns."""
    kind = accelerate(threads)
    try:
        yield kind
    finally:
        while _POINTED:
            for place, former in _POINTED.pop()[1]:
                _replace(place, former)


@contextmanager
def plain() -> Iterator[None]:
    """Inside `accelerated`: products by mlx's own BLAS, bit for bit as in a pass, until the block ends."""
    for _, former, _ in _POINTED:
        for place, address in former:
            _replace(place, address)
    try:
        yield
    finally:
        for _, _, ours in _POINTED:
            for place, address in ours:
                _replace(place, address)


@contextmanager
def mlx_on_one_thread() -> Iterator[None]:
    """The OpenBLAS that `accelerate` chose computes on the thread that asks, until the block ends.

    For callers that let mlx compute on several streams: threads of OpenBLAS would wait, and use the cores.
    """
    library = _package("scipy_openblas32", "lib/libscipy_openblas.so") if _POINTED else None
    if library is None:
        yield
        return
    openblas = ctypes.CDLL(str(library))
    with _one_thread(openblas.scipy_openblas_get_num_threads, openblas.scipy_openblas_set_num_threads):
        yield


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """numpy's own OpenBLAS computes on the thread that asks, until the block ends.

    For callers with threads of their own, which would wait for one another. The bits of a factorization also
    depend on the number of threads. Where numpy has another BLAS, nothing happens.
    """
    library = _numpys_openblas()
    if library is None:
        yield
        return
    with _one_thread(library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_):
        yield


@contextmanager
def _one_thread(threads: Callable[[], int], use: Callable[[int], object]) -> Iterator[None]:
    former = threads()
    use(1)
    try:
        yield
    finally:
        use(former)


@cache
def _numpys_openblas() -> ctypes.CDLL | None:
    import numpy as np

    for file in sorted((Path(np.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas64_*")):
        library = ctypes.CDLL(str(file))
        if hasattr(library, "scipy_openblas_set_num_threads64_"):
            return library
    return None


def _products() -> list[float]:
    """Some entries of products of each kind that mlx asks a BLAS for: plain, transposed, a single row."""
    import mlx.core as mx

    def ramp(rows: int, columns: int) -> mx.array:
        return mx.sin(mx.arange(rows * columns, dtype=mx.float32)).reshape(rows, columns)

    a, b, row = ramp(33, 65), ramp(65, 47), ramp(1, 65)
    made = [a @ b, b.T @ a.T, mx.contiguous(a.T).T @ b, row @ b, a @ row.T, 0.5 * ramp(33, 47) + a @ b]
    values: Any = mx.concatenate([each.reshape(-1)[::97] for each in made]).tolist()
    return list(values)


def _choose_threads(use: Callable[[int], object]) -> None:
    """Chooses the number of threads that multiplies fastest now. On busy cores, more threads are slower.

    With another number of threads OpenBLAS may add in another order. 1 and 2 threads gave identical bits on
    SkylakeX, and results equal up to float32 rounding on others. So results record the number, and whoever
    needs the same bits from every run asks for one thread.
    """
    import mlx.core as mx

    a, b = mx.ones((512, 1024)), mx.ones((1024, 1024))

    def seconds(threads: int) -> float:
        use(threads)
        mx.eval(a @ b)  # threads start
        start = time.perf_counter()
        for _ in range(16):
            mx.eval(a @ b)
        return time.perf_counter() - start

    cores = len(os.sched_getaffinity(0))
    best, least = 1, seconds(1)
    for threads in sorted({*(1 << n for n in range(1, cores.bit_length())), cores} - {1}):
        if (taken := seconds(threads)) > 0.9 * least:
            break
        best, least = threads, taken
    use(best)


def _package(name: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    return None


def _loaded_at(library: Path) -> int | None:
    """The address at which a loaded library begins, or None."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(library.resolve()) and int(fields[2], 16) == 0:
            return int(fields[0].split("-")[0], 16)
    return None


def _imports(library: Path) -> Iterator[tuple[bytes, int]]:
    """Yields name and offset of each pointer to a function of _FUNCTIONS, from the file's ELF64 tables."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        table, size, count, names_at = (
            *struct.unpack_from("<Q", data, 40),
            *struct.unpack_from("<HHH", data, 58),
        )
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
        names = headers[names_at][4]
        sections = {_text(data, names + header[0]): header for header in headers}
        symbols, texts = sections[b".dynsym"][4], sections[b".dynstr"][4]
        for name in _TABLES:
            if (header := sections.get(name)) is None:
                continue
            for at in range(header[4], header[4] + header[5], 24):
                offset, info = struct.unpack_from("<QQ", data, at)
                symbol = struct.unpack_from("<I", data, symbols + (info >> 32) * 24)[0]
                if info >> 32 and (found := _text(data, texts + symbol)) in _FUNCTIONS:
                    yield found, offset


def _text(data: mmap.mmap, at: int) -> bytes:
    return data[at : data.find(b"\0", at)]


def _address(library: ctypes.CDLL, name: bytes) -> int:
    return ctypes.cast(getattr(library, f"scipy_{name.decode()}"), ctypes.c_void_p).value or 0


def _replace(place: int, address: int) -> int:
    """Writes an address to a place that the loader may have made read-only. Returns the former address."""
    page = place - place % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _READ_WRITE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    cell = ctypes.c_void_p.from_address(place)
    former, cell.value = cell.value or 0, address
    return former
