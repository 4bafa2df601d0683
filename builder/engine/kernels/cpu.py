"""Compiled CPU kernels: quantize a weight to many affine bit widths in one pass, and back, and fuse LoRA.

mx.quantize on a CPU walks the weights once per width, on one thread, element by element. These kernels read a
weight once and write every width. Their result is bit-identical to the one of mx.quantize. They need numba
(extra `cpu`) and serve mlx's CPU device only. On a GPU mlx itself is fast.

Exactness is not assumed but checked. `builder.engine.kernels.agreement` compares the kernels with the
installed mlx, once per process. mlx does the work wherever they differ.

Arrays are numpy arrays of stored values: uint16 bit patterns for bfloat16 and float16, float32 as itself.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.engine.kernels.signatures import SIZES

Array = npt.NDArray[Any]
Setting = tuple[int, int]  # bits, group size
Empty = Callable[..., Array]  # as numpy.empty

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
SETTINGS = frozenset((bits, group) for bits in BITS for group in GROUP_SIZES)
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}  # the numbers that `jitted` uses for them
_STORED = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.uint32}

HELPERS = 8
_PAGE = 4096
PIECE = 1 << 19  # elements that one thread takes at a time. Fixed, so that threads do not change results


class NonFinite(ValueError):
    """The weights hold NaN or infinity, which have no quantized form."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What quantization did to one array, and what fine-tuning did to it, as sums over its elements.

    error = dequantized - weight, where mx.dequantize gives the dequantized value. delta = weight - original.
    Products are added in float32 within a group and in float64 across groups.
    """

    squared_error: float
    error_dot_delta: float
    squared_delta: float


@dataclass(frozen=True, slots=True)
class QuantizedArrays:
    """One array quantized to one setting, as mx.quantize returns it.

    weight: uint32, (..., columns * bits / 32). scales, biases: (..., columns / group size), stored in the
    dtype of the weight. The arrays of one call share their memory, which is freed with the last array.
    """

    weight: npt.NDArray[np.uint32]
    scales: Array
    biases: Array
    loss: Loss | None = None


def available(dtype: str) -> bool:
    """Whether kernels for `dtype` can be used: mlx computes on the CPU, and numba is installed and works."""
    if not _has_numba():
        return False
    import mlx.core as mx

    if mx.default_device() != mx.Device(mx.cpu):
        return False
    from builder.engine.kernels import compiled

    return compiled.load(SIZES[dtype]) is not None


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def ready(dtype: str) -> bool:
    """Whether kernels for `dtype` can be used without compiling them first."""
    if not _has_numba():
        return False
    from builder.engine.kernels import compiled

    return compiled.is_kept(SIZES[dtype])


class Widths:
    """The arrays of one weight at each of `settings`. `quantize` fills them, some rows at a time.

    shape: (rows, columns) or (experts, rows, columns), of stored values of `dtype`. empty: makes the arrays.
    begins: for each setting, a number of bytes. Its codes lie as far behind the begin of a page of 4096
    bytes, where they fill many pages. Raises ValueError when a setting has no kernel, or does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        settings: Sequence[Setting],
        *,
        empty: Empty = np.empty,
        begins: Sequence[int] = (),
    ) -> None:
        for bits, group in settings:
            if (bits, group) not in SETTINGS:
                raise ValueError(f"no kernel for {bits} bits in groups of {group}")
            if shape[-1] % group:
                raise ValueError(f"{shape[-1]} columns are not a multiple of the group size {group}")
        self._shape, self._dtype, size = shape, dtype, prod(shape)
        gap = _PAGE if begins and size >= PIECE else 0
        self._codes = empty(sum(size * bits // 32 + gap // 4 for bits, _ in settings), np.uint32)
        rows, code_count, param_count = [], 0, 0
        for number, (bits, group) in enumerate(settings):
            groups = size // group
            if gap:
                code_count += (begins[number] - self._codes.ctypes.data - 4 * code_count) % _PAGE // 4
            rows.append((bits, group, code_count, param_count, param_count + groups))
            code_count += size * bits // 32
            param_count += 2 * groups
        self._table = np.array(rows, np.int64).reshape(-1, 5)
        self._params = empty(param_count, _STORED[dtype])

    def quantize(self, raw: Array, at: int = 0, original: Array | None = None) -> npt.NDArray[np.float64]:
        """Quantizes whole rows of the weight, of which the first element is number `at` of the weight.

        raw, original: stored values as flat unsigned integers, contiguous. Returns the sums of `Loss` for
        each setting, zeros without `original`. On one thread, with the GIL released. Raises NonFinite.
        """
        from builder.engine.kernels import compiled

        table, sums = self._table.copy(), np.zeros((len(self._table), 3))
        bits, groups = table[:, 0], table[:, 1]
        table[:, 2] += at * bits // 32
        table[:, 3:] += (at // groups)[:, None]
        before = raw[:0] if original is None else original
        span = KINDS[self._dtype], raw, 0, raw.size
        if compiled.quantize_span(*span, table, self._codes, self._params, before, sums) >= 0:
            raise NonFinite("NaN or infinity")
        return sums

    def results(self, losses: Sequence[Loss | None] = ()) -> list[QuantizedArrays]:
        """The arrays of each setting, as mx.quantize shapes them."""
        lead, columns, size = self._shape[:-1], self._shape[-1], prod(self._shape)
        params = self._params.view(np.float32 if self._dtype == "float32" else np.uint16)
        found = []
        for (bits, group, codes_at, scales_at, biases_at), loss in zip_longest(self._table.tolist(), losses):
            count = size * bits // 32, size // group
            found.append(
                QuantizedArrays(
                    weight=self._codes[codes_at : codes_at + count[0]].reshape(*lead, columns * bits // 32),
                    scales=params[scales_at : scales_at + count[1]].reshape(*lead, columns // group),
                    biases=params[biases_at : biases_at + count[1]].reshape(*lead, columns // group),
                    loss=loss,
                )
            )
        return found


def quantize_widths(
    weight: Array,
    dtype: str,
    settings: Sequence[Setting],
    *,
    threads: int = 1,
    original: Array | None = None,
    empty: Empty = np.empty,
    begins: Sequence[int] = (),
) -> list[QuantizedArrays]:
    """Quantizes `weight` to each of `settings`, in one pass over the weight. One result for each setting.

    weight: (rows, columns) or (experts, rows, columns) stored values of `dtype` ("bfloat16", "float16",
    "float32"). original: the weight before fine-tuning, in the same shape. With it the results have a `Loss`.
    empty, begins: as for `Widths`.
    At most `threads` threads compute, and they end before this returns. The first call in a process loads or
    compiles the loops.

    Raises ValueError when an array does not fit `dtype` or a setting, and NonFinite for NaN or infinity.
    """
    flat = as_input(weight, dtype).reshape(-1)
    before = None if original is None else as_input(original, dtype).reshape(-1)
    if original is not None and original.shape != weight.shape:
        raise ValueError(f"original has shape {original.shape}, weight {weight.shape}")
    widths = Widths(weight.shape, dtype, settings, empty=empty, begins=begins)
    if not settings:
        return []
    starts = range(0, flat.size, PIECE)
    sums = np.zeros((len(starts), len(settings), 3))

    def quantize(piece: int) -> None:
        part = slice(starts[piece], starts[piece] + PIECE)
        sums[piece] = widths.quantize(flat[part], part.start, None if before is None else before[part])

    each(quantize, len(starts), threads)
    losses = [Loss(*total) for total in sums.sum(axis=0).tolist()]
    return widths.results(losses if original is not None else ())


def dequantize_into(
    out: npt.NDArray[np.float32],
    codes: Array,
    scales: Array,
    biases: Array,
    *,
    dtype: str,
    setting: Setting,
) -> None:
    """Writes to `out` what mx.dequantize gives for the arrays of mx.quantize, as float32.

    out: (rows, columns), C-contiguous. codes: uint32. scales, biases: stored values of `dtype`. On one
    thread, with the GIL released. Raises ValueError when arrays do not fit.
    """
    from builder.engine.kernels import compiled

    scale, bias = as_input(scales, dtype), as_input(biases, dtype)
    words = np.require(codes, np.uint32, ["C", "A"])
    bits, group = setting
    if setting not in SETTINGS or words.size * 32 != out.size * bits or scale.size * group != out.size:
        raise ValueError(f"no kernel for {bits} bits in groups of {group}, or the arrays do not fit")
    compiled.dequantize_span(KINDS[dtype], words, scale, bias, setting, 0, out.size, out)


def widen_into(out: npt.NDArray[np.float32], raw: Array, dtype: str) -> None:
    """Writes stored values of `dtype` to `out` as float32, on one thread, with the GIL released."""
    from builder.engine.kernels import compiled

    compiled.widen_span(KINDS[dtype], as_input(raw, dtype), 0, out.size, out)


def as_input(array: Array, dtype: str) -> Array:
    """Checks an input and gives it the form that the loops need: unsigned integers, aligned, contiguous.

    The result is read-only. Raises ValueError.
    """
    if dtype not in KINDS:
        raise ValueError(f"no kernel for {dtype}")
    expected = np.float32 if dtype == "float32" else np.uint16
    if array.dtype != expected or array.ndim not in (2, 3):
        raise ValueError(f"{dtype} weights of 2 or 3 dimensions, not {array.dtype} of {array.ndim}")
    raw = np.require(array, requirements=["C", "A"]).view(_STORED[dtype])
    raw.flags.writeable = False
    return raw


def each(work: Callable[[int], None], count: int, threads: int) -> None:
    """Calls `work` with 0 to count - 1, on at most `threads` threads, this one included.

    Returns when all of them have ended. Raises an exception of `work`.
    """
    pieces = iter(range(count))  # whoever is free takes the next one

    def run() -> None:
        for piece in pieces:
            work(piece)

    helpers = [_helpers().submit(run) for _ in range(min(threads, count) - 1)]
    try:
        run()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    """Threads that stay: a block has many small weights, and starting threads for each took longer."""
    return ThreadPoolExecutor(HELPERS, "kernel")


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has none of its parent's threads
