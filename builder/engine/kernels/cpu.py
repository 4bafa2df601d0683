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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from builder.engine.kernels.signatures import SIZES

Array = npt.NDArray[Any]
Setting = tuple[int, int]  # bits, group size
Empty = Callable[..., Array]  # as numpy.empty
Layout = Literal["linear", "switch", "embedding"]  # how mlx-lm multiplies lora_a and lora_b

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
SETTINGS = frozenset((bits, group) for bits in BITS for group in GROUP_SIZES)
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}  # the numbers that `jitted` uses for them

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
    empty: makes the arrays of the results. begins: for each setting, a number of bytes. Its codes lie as far
    behind the begin of a page of 4096 bytes, where they fill many pages.
    At most `threads` threads compute, and they end before this returns. The first call in a process loads or
    compiles the loops.

    Raises ValueError when an array does not fit `dtype` or a setting, and NonFinite for NaN or infinity.
    """
    flat = _input(weight, dtype).reshape(-1)
    before = flat[:0] if original is None else _input(original, dtype).reshape(-1)
    if original is not None and original.shape != weight.shape:
        raise ValueError(f"original has shape {original.shape}, weight {weight.shape}")
    for bits, group in settings:
        if (bits, group) not in SETTINGS:
            raise ValueError(f"no kernel for {bits} bits in groups of {group}")
        if weight.shape[-1] % group:
            raise ValueError(f"{weight.shape[-1]} columns are not a multiple of the group size {group}")
    if not settings:
        return []

    from builder.engine.kernels import compiled

    gap = _PAGE if begins and flat.size >= PIECE else 0
    codes = empty(sum(flat.size * bits // 32 + gap // 4 for bits, _ in settings), np.uint32)
    rows, code_count, param_count = [], 0, 0
    for number, (bits, group) in enumerate(settings):
        groups = flat.size // group
        if gap:
            code_count += (begins[number] - codes.ctypes.data - 4 * code_count) % _PAGE // 4
        rows.append((bits, group, code_count, param_count, param_count + groups))
        code_count += flat.size * bits // 32
        param_count += 2 * groups
    table, params = np.array(rows, np.int64), empty(param_count, flat.dtype)
    starts = range(0, flat.size, PIECE)
    sums = np.zeros((len(starts), len(settings), 3))

    def quantize(piece: int) -> None:
        first, last = starts[piece], min(starts[piece] + PIECE, flat.size)
        span = KINDS[dtype], flat, first, last
        if compiled.quantize_span(*span, table, codes, params, before, sums[piece]) >= 0:
            raise NonFinite("NaN or infinity")

    _each(quantize, len(starts), threads)
    totals = sums.sum(axis=0)
    lead, columns = weight.shape[:-1], weight.shape[-1]
    params = params.view(weight.dtype)
    results = []
    for (bits, group, codes_at, scales_at, biases_at), total in zip(rows, totals, strict=True):
        groups = flat.size // group
        results.append(
            QuantizedArrays(
                weight=codes[codes_at : codes_at + flat.size * bits // 32].reshape(
                    *lead, columns * bits // 32
                ),
                scales=params[scales_at : scales_at + groups].reshape(*lead, columns // group),
                biases=params[biases_at : biases_at + groups].reshape(*lead, columns // group),
                loss=None if original is None else Loss(*map(float, total)),
            )
        )
    return results


def fuse_lora(
    weight: Array,
    dtype: str,
    lora_a: npt.NDArray[np.float32],
    lora_b: npt.NDArray[np.float32],
    scale: float,
    layout: Layout = "linear",
    *,
    threads: int = 1,
    empty: Empty = np.empty,
) -> Array:
    """The fused weight of a LoRA layer, bit-identical to mlx-lm's `fuse` where `agreement.fuse_agrees`.

    linear: weight (out, in), lora_a (in, rank), lora_b (rank, out). switch: weight (experts, out, in),
    lora_a (experts, rank, in) or flattened, lora_b (experts, out, rank). embedding: weight (tokens, dims),
    lora_a (tokens, rank), lora_b (rank, dims). The factors are float32. Returns a new array of stored values
    of `dtype` in the shape of `weight`, made by `empty`.

    Raises ValueError when shapes or dtypes do not fit. NaN and infinity are not looked for.
    """
    raw = _input(weight, dtype)
    if lora_a.dtype != np.float32 or lora_b.dtype != np.float32:
        raise ValueError(f"lora_a and lora_b are {lora_a.dtype} and {lora_b.dtype}, not float32")
    if layout == "linear":
        left, right = (np.float32(scale) * lora_b).T, lora_a.T
    elif layout == "switch":
        left, right = np.float32(scale) * lora_b, lora_a.reshape(weight.shape[0], -1, weight.shape[-1])
    else:
        left, right = np.float32(scale) * lora_a, lora_b
    stack = raw.reshape(-1, *raw.shape[-2:])
    lefts = _input(left, "float32").view(np.float32).reshape(-1, *left.shape[-2:])
    rights = _input(right, "float32").view(np.float32).reshape(-1, *right.shape[-2:])
    if lefts.shape != (*stack.shape[:2], rights.shape[1]) or rights.shape[2] != stack.shape[2]:
        raise ValueError(f"weight {weight.shape}, lora_a {lora_a.shape} and lora_b {lora_b.shape} do not fit")

    from builder.engine.kernels import compiled

    out, lined = empty(stack.shape, stack.dtype), compiled.in_lines(rights)
    height = max(1, PIECE // max(1, stack.shape[2]))
    pieces = [(e, first) for e in range(stack.shape[0]) for first in range(0, stack.shape[1], height)]

    def fuse(piece: int) -> None:
        e, first = pieces[piece]
        last = min(first + height, stack.shape[1])
        compiled.fuse_rows(KINDS[dtype], stack[e], lefts[e], lined[e], first, last, out[e])

    _each(fuse, len(pieces), threads)
    return out.view(weight.dtype).reshape(weight.shape)


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

    scale, bias = _input(scales, dtype), _input(biases, dtype)
    words = np.require(codes, np.uint32, ["C", "A"])
    bits, group = setting
    if setting not in SETTINGS or words.size * 32 != out.size * bits or scale.size * group != out.size:
        raise ValueError(f"no kernel for {bits} bits in groups of {group}, or the arrays do not fit")
    compiled.dequantize_span(KINDS[dtype], words, scale, bias, setting, 0, out.size, out)


def widen_into(out: npt.NDArray[np.float32], raw: Array, dtype: str) -> None:
    """Writes stored values of `dtype` to `out` as float32, on one thread, with the GIL released."""
    from builder.engine.kernels import compiled

    compiled.widen_span(KINDS[dtype], _input(raw, dtype), 0, out.size, out)


def _input(array: Array, dtype: str) -> Array:
    """Checks an input and gives it the form that the loops need: unsigned integers, aligned, contiguous.

    The result is read-only. Raises ValueError.
    """
    if dtype not in KINDS:
        raise ValueError(f"no kernel for {dtype}")
    expected = np.float32 if dtype == "float32" else np.uint16
    if array.dtype != expected or array.ndim not in (2, 3):
        raise ValueError(f"{dtype} weights of 2 or 3 dimensions, not {array.dtype} of {array.ndim}")
    raw = np.require(array, requirements=["C", "A"]).view(np.uint32 if dtype == "float32" else np.uint16)
    raw.flags.writeable = False
    return raw


def _each(work: Callable[[int], None], count: int, threads: int) -> None:
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
