"""Fuses LoRA layers with compiled loops: a whole weight, or some of its rows.

As mlx-lm's LoRALinear, LoRASwitchLinear and LoRAEmbedding `fuse` (mlx_lm.tuner.lora), bit by bit, where
`builder.engine.kernels.agreement` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from builder.engine.kernels.cpu import KINDS, PIECE, Array, Empty, as_input, each

Layout = Literal["linear", "switch", "embedding"]  # how mlx-lm multiplies lora_a and lora_b


@dataclass(frozen=True, slots=True)
class Factors:
    """What the loops multiply for a weight of (rows, columns), or a stack of such weights.

    left: (stack, rows, rank), scale included. right: (stack, rank, columns). Both float32 and contiguous.
    """

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]

    def fuse(self, raw: Array, dtype: str, at: int, out: Array) -> None:
        """Fuses the rows of `raw`, of which the first is number `at` of the stack, all of one weight.

        raw, out: (rows, columns) stored values of `dtype` as unsigned integers, contiguous. They may be the
        same. On one thread, with the GIL released.
        """
        from builder.engine.kernels import compiled

        number, first = divmod(at, self.left.shape[1])
        left = self.left[number, first : first + len(raw)]
        compiled.fuse_rows(KINDS[dtype], raw, left, self.right[number], 0, len(raw), out)


def factors(
    shape: tuple[int, ...],
    lora_a: npt.NDArray[np.float32],
    lora_b: npt.NDArray[np.float32],
    scale: float,
    layout: Layout = "linear",
) -> Factors:
    """The factors of a LoRA layer around a weight of `shape`.

    linear: weight (out, in), lora_a (in, rank), lora_b (rank, out). switch: weight (experts, out, in),
    lora_a (experts, rank, in) or flattened, lora_b (experts, out, rank). embedding: weight (tokens, dims),
    lora_a (tokens, rank), lora_b (rank, dims). Raises ValueError when shapes or dtypes do not fit.
    """
    from builder.engine.kernels import compiled

    if lora_a.dtype != np.float32 or lora_b.dtype != np.float32:
        raise ValueError(f"lora_a and lora_b are {lora_a.dtype} and {lora_b.dtype}, not float32")
    if layout == "linear":
        left, right = (np.float32(scale) * lora_b).T, lora_a.T
    elif layout == "switch":
        left, right = np.float32(scale) * lora_b, lora_a.reshape(shape[0], -1, shape[-1])
    else:
        left, right = np.float32(scale) * lora_a, lora_b
    lefts = np.ascontiguousarray(left).reshape(-1, *left.shape[-2:])
    rights = right.reshape(-1, *right.shape[-2:])
    stack = shape if len(shape) == 3 else (1, *shape)
    if lefts.shape != (*stack[:2], rights.shape[1]) or rights.shape[2] != stack[2]:
        raise ValueError(f"weight {shape}, lora_a {lora_a.shape} and lora_b {lora_b.shape} do not fit")
    return Factors(lefts, compiled.in_lines(rights))


def fuse_lora(
    weight: Array,
    dtype: str,
    lora_a: npt.NDArray[np.float32],
    lora_b: npt.NDArray[np.float32],
    scale: float,
    layout: Layout = "linear",
) -> Array:
    """The fused weight of a LoRA layer, as a new array. Arguments as for `factors` and `fuse_whole`."""
    return fuse_whole(weight, dtype, factors(weight.shape, lora_a, lora_b, scale, layout))


def fuse_whole(
    weight: Array, dtype: str, found: Factors, *, threads: int = 1, empty: Empty = np.empty
) -> Array:
    """A weight fused with the `factors` that were made for its shape.

    weight: stored values of `dtype`. Returns an array of stored values in its shape, made by `empty`.
    Raises ValueError when the dtype does not fit. NaN and infinity are not looked for.
    """
    raw = as_input(weight, dtype).reshape(-1, weight.shape[-1])
    out = empty(raw.shape, raw.dtype)
    rows, height = found.left.shape[1], max(1, PIECE // max(1, raw.shape[1]))
    starts = [
        (first, min(first + height, number * rows + rows))
        for number in range(len(found.left))
        for first in range(number * rows, number * rows + rows, height)
    ]

    def fuse(piece: int) -> None:
        first, last = starts[piece]
        found.fuse(raw[first:last], dtype, first, out[first:last])

    each(fuse, len(starts), threads)
    return out.view(weight.dtype).reshape(weight.shape)
