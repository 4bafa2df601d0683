"""Fuses and quantizes a weight while its rows come in, so that the weight is never in memory as a whole.

This is for what the compiled kernels do exactly: a plain module whose weight every variant quantizes, in the
dtype that it has. Each row gets what `Block.shards` would do with it, so the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from builder.engine.arrays import from_numpy
from builder.engine.finite import NotFinite
from builder.engine.fusing import DTYPES, factors_of
from builder.engine.kernels import cpu as kernels
from builder.engine.kernels.cpu import Array, Empty, QuantizedArrays, Setting, Widths
from builder.engine.kernels.lora import Factors
from builder.engine.survival import PathSurvival, sampled_losses, sampled_rows
from builder.spec.types import Quantization
from builder.weights.shards import RawTensor

ROWS = 1 << 21  # elements that one thread takes at a time
WIDEST = 1 << 20  # bytes of a row: many rows lie in what is read at once


def row_bytes(weight: mx.array) -> int:
    """The bytes of one row of a weight."""
    return int(weight.shape[-1] * weight.itemsize)


def quantized_tensors(path: str, made: QuantizedArrays, dtype: str) -> dict[str, RawTensor]:
    """The tensors of a quantized module whose weight has `dtype`."""
    return {
        f"{path}.weight": from_numpy(made.weight, "uint32"),
        f"{path}.scales": from_numpy(made.scales, dtype),
        f"{path}.biases": from_numpy(made.biases, dtype),
    }


@dataclass
class ByRows:
    """One weight of several variants. `weight` is lazy, and is not read.

    layer: the LoRA layer around it. begins: for each setting, where its codes will begin in their file.
    survival: whether to measure what is left of the adapter. empty: makes the arrays of the results.
    """

    path: str
    weight: mx.array
    layer: Any | None
    variants: Mapping[str, Quantization]
    begins: Mapping[Setting, int]
    target: str
    survival: bool
    empty: Empty
    _work: _Work | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.path}.weight"

    def work(self, at: int, data: memoryview) -> Iterator[Callable[[], None]]:
        """What to do with the bytes of some whole rows, of which the first is byte `at` of the weight.

        In parts that any threads may do. They write into `data`. They raise NotFinite.
        """
        if self._work is None:
            self._work = _Work(self)
        shape, columns = self.weight.shape, self.weight.shape[-1]
        kind = np.uint32 if self.weight.dtype == mx.float32 else np.uint16
        rows, first = np.frombuffer(data, kind).reshape(-1, columns), at // row_bytes(self.weight)
        height = max(1, ROWS // columns)
        start, last = first, first + len(rows)
        while start < last:  # no part lies in two weights of a stack
            end = min(start + height, (start // shape[-2] + 1) * shape[-2], last)
            yield partial(self._work.take, start, rows[start - first : end - first])
            start = end

    def results(self, variant: str) -> dict[str, RawTensor]:
        """The tensors of a variant, once all rows have come in."""
        return quantized_tensors(self.path, self._made[self._setting(variant)], DTYPES[self.weight.dtype])

    def measured(self, variant: str) -> PathSurvival:
        """How much of the adapter is left in a variant, once all rows have come in."""
        return self._losses[self._setting(variant)]

    def _setting(self, variant: str) -> Setting:
        how = self.variants[variant]
        return how.bits, how.group_size

    @cached_property
    def _made(self) -> dict[Setting, QuantizedArrays]:
        assert self._work is not None, f"no row of {self.name} came in"
        return dict(zip(self.begins, self._work.widths.results(), strict=True))

    @cached_property
    def _losses(self) -> dict[Setting, PathSurvival]:
        work, settings = self._work, list(self.begins)
        assert work is not None, f"no row of {self.name} came in"
        rows, dtype = prod(self.weight.shape[:-1]), DTYPES[self.weight.dtype]
        made = sampled_losses(self.path, work.before, work.after, rows, dtype, settings)
        return dict(zip(settings, made, strict=True))


class _Work:
    """The arrays that the rows of a weight fill."""

    def __init__(self, by: ByRows) -> None:
        shape, self._dtype = tuple(by.weight.shape), DTYPES[by.weight.dtype]
        self._columns = shape[-1]  # `by` is not kept: in a cycle, the arrays would wait for the collector
        self._not_finite = partial(NotFinite, target=by.target, tensor=by.name)
        self._factors: Factors | None = None
        if by.layer is not None:
            self._factors = factors_of(by.layer, by.weight)
            assert self._factors is not None, "Block.take_by_rows asks before"
        begins = list(by.begins.values())
        self.widths = Widths(shape, self._dtype, list(by.begins), empty=by.empty, begins=begins)
        self._chosen = sampled_rows(shape)[1] if by.survival else np.empty(0, np.int64)
        stored = np.float32 if self._dtype == "float32" else np.uint16
        self.after = np.empty((len(self._chosen), self._columns), stored)
        self.before = np.empty_like(self.after) if by.layer is not None else None

    def take(self, first: int, rows: Array) -> None:
        """Fuses rows where they are, and quantizes them. The first is row `first` of the weight."""
        rows = np.require(rows, requirements=["A", "W"])
        low, high = np.searchsorted(self._chosen, (first, first + len(rows)))
        sampled = self._chosen[low:high] - first
        if self._factors is not None:
            assert self.before is not None
            self.before[low:high] = rows[sampled].view(self.before.dtype)
            self._factors.fuse(rows, self._dtype, first, rows)
        self.after[low:high] = rows[sampled].view(self.after.dtype)
        try:
            self.widths.quantize(rows.reshape(-1), first * self._columns)
        except kernels.NonFinite as error:
            raise self._not_finite() from error
