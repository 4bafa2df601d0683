"""Multiplies by weights on a CPU as they are stored, each weight once for all that is multiplied by it.

mlx on a CPU multiplies by experts token by token, and reads an expert's whole weight for each of its tokens.
Here all tokens of all calls are sorted by expert. The weight of an expert becomes float32 in a buffer that
stays in the CPU's cache, and is multiplied at once. A plain weight is cut into such pieces. So no weight
is in memory as float32.

numpy multiplies, one piece on each core. Callers keep numpy's BLAS on one thread (`numpy_on_one_thread`),
so that the number of cores does not change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import local

import mlx.core as mx
import numpy as np

from builder.engine.stored import (
    PIECE,
    Array,
    Floats,
    Held,
    Rows,
    Stored,
    as_numpy,
    new_memory,
    on_each_core,
)

_GATED = 1 << 16  # numbers that stay in the CPU's cache
Call = tuple[mx.array, mx.array]  # inputs [..., rows, columns], and the experts [...] that they are for


class _Buffers(local):
    """Memory for one matrix, and for `rows` that are multiplied by it, for each thread its own."""

    def __init__(self, shape: tuple[int, int], rows: int = 0) -> None:
        self.weight: Floats = np.empty(shape, np.float32)
        self.given: Floats = np.empty((rows, shape[1]), np.float32)
        self.found: Floats = np.empty((rows, shape[0]), np.float32)


def by_expert(calls: Sequence[Call], stored: Stored, held: Held | None = None) -> list[mx.array]:
    """What mx.gather_mm gives for each call, from the stack `stored` transposed: [..., rows, out].

    The dimensions of inputs and experts are broadcast as by mx.gather_mm. held: the stack, where it is in
    memory.
    """
    mx.eval(calls)
    weight = Rows(stored, held)
    experts, wide, columns = stored.shape
    parts = [_Part(x, indices, experts, wide) for x, indices in calls]
    sizes = np.sum([part.counts for part in parts], axis=0)
    buffers = _Buffers((wide, columns), int(sizes.max()))

    def multiply(number: int) -> None:
        given, found, at = buffers.given[: sizes[number]], buffers.found[: sizes[number]], 0
        for part in parts:
            index, _ = part.rows(number)  # "clip": numpy would copy to make sure that no index is wrong
            np.take(part.given, index, axis=0, out=given[at : at + len(index)], mode="clip")
            at += len(index)
        matrix = weight.get(number * wide, (number + 1) * wide, buffers.weight)
        np.matmul(given, matrix.T, out=found)
        at = 0
        for part in parts:
            _, places = part.rows(number)
            part.out[places] = found[at : at + len(places)]
            at += len(places)

    order = np.argsort(-sizes, kind="stable")  # the most work first, so that all cores end together
    on_each_core(multiply, [int(number) for number in order if sizes[number]], weight.parallel)
    return [part.made for part in parts]


def by_matrix(calls: Sequence[mx.array], stored: Stored, held: Held | None = None) -> list[mx.array]:
    """The product of each call [..., columns] and the matrix `stored` transposed: [..., out].

    held: the matrix, where it is in memory.
    """
    mx.eval(calls)
    wide, columns = stored.shape
    weight = Rows(stored, held)
    height = max(1, PIECE // columns)
    rows = [as_numpy(x).reshape(-1, columns).astype(np.float32, copy=False) for x in calls]
    given = rows[0] if len(rows) == 1 else np.concatenate(rows)
    outs = [new_memory((*x.shape[:-1], wide)) for x in calls]
    places = [as_numpy(out).reshape(-1, wide) for out in outs]
    buffers = _Buffers((height, columns))

    def multiply(first: int) -> None:
        last = min(first + height, wide)
        found, at = given @ weight.get(first, last, buffers.weight).T, 0
        for place in places:
            place[:, first:last] = found[at : at + len(place)]
            at += len(place)

    on_each_core(multiply, range(0, wide, height), weight.parallel)
    return outs


def gated(calls: Sequence[tuple[mx.array, mx.array]]) -> list[mx.array]:
    """x · gate · sigmoid(gate) of each call (x, gate), float32 of one shape, as mlx-lm's SwiGLU gives it.

    mlx on a CPU takes 15 times as long for it, because it computes each exponential by itself.
    """
    mx.eval(calls)
    outs = [new_memory(x.shape) for x, _ in calls]
    flat = [
        [as_numpy(each).reshape(-1) for each in (x, gate, out)]
        for (x, gate), out in zip(calls, outs, strict=True)
    ]
    pieces = [(n, at) for n, (x, _, _) in enumerate(flat) for at in range(0, x.size, _GATED)]

    def multiply(number: int) -> None:
        n, at = pieces[number]
        x, gate, out = (each[at : at + _GATED] for each in flat[n])
        with np.errstate(over="ignore"):  # exp(-gate) may be infinite, and the quotient is zero then
            np.exp(np.negative(gate, out=out), out=out)
        np.add(out, 1, out=out)
        np.divide(gate, out, out=out)
        np.multiply(out, x, out=out)

    on_each_core(multiply, range(len(pieces)), parallel=True)
    return outs


def given(x: mx.array, indices: mx.array, sorted_indices: bool = False) -> Call:
    """The arguments of mlx-lm's call of a stack of experts. Whether they are sorted does not matter."""
    return x, indices


class _Part:
    """One call: its inputs as rows, and which rows go to which expert."""

    def __init__(self, x: mx.array, indices: mx.array, experts: int, wide: int) -> None:
        *lead, height, columns = x.shape
        batch = np.broadcast_shapes(tuple(lead), tuple(indices.shape))
        self.given = as_numpy(x).reshape(-1, columns).astype(np.float32, copy=False)
        self.made = new_memory((*batch, height, wide))
        self.out = as_numpy(self.made).reshape(-1, wide)
        sources = np.broadcast_to(np.arange(len(self.given)).reshape(*lead, height), (*batch, height))
        chosen = np.broadcast_to(as_numpy(indices)[..., None], (*batch, height)).reshape(-1)
        self._order = np.argsort(chosen, kind="stable")
        self._sources = sources.reshape(-1)[self._order]
        self.counts = np.bincount(chosen, minlength=experts)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])

    def rows(self, number: int) -> tuple[Array, Array]:
        """The rows of the inputs that go to an expert, and the rows of the output that they make."""
        some = slice(self._starts[number], self._starts[number + 1])
        return self._sources[some], self._order[some]
