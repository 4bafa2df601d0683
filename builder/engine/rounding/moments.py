"""Second moments of the inputs of linear layers: the mean of x xᵀ over all tokens, collected in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from builder.engine.rounding.lookup import Lookup

Floats = npt.NDArray[np.float32]


@dataclass
class Sum:
    """The sum of x xᵀ [columns, columns], lazy, and how many inputs it is of."""

    total: mx.array | None = None
    count: int = 0

    def add(self, inputs: mx.array) -> None:
        """Adds inputs [tokens, columns]."""
        part = self._of(inputs.astype(mx.float32))
        self.total = part if self.total is None else self.total + part
        self.count += inputs.shape[0]

    def _of(self, rows: mx.array) -> mx.array:
        return rows.T @ rows

    @property
    def mean(self) -> Floats | None:
        """None where nothing was added."""
        if self.total is None:
            return None
        return np.asarray(np.array(self.total, copy=False) / np.float32(max(1, self.count)))

    def copy(self) -> Sum:
        """A sum of its own of the same inputs. The array is shared until one of the two adds something."""
        return type(self)(self.total, self.count)


@dataclass
class Squares(Sum):
    """The sum of the squares of each column alone [columns]: the diagonal of what `Sum` collects."""

    def _of(self, rows: mx.array) -> mx.array:
        return mx.square(rows).sum(axis=0)


@dataclass
class Seen:
    """What linear layers were given: by path, and for a stack of experts by path and expert."""

    plain: dict[str, Sum] = field(default_factory=dict)
    experts: dict[str, dict[int, Sum]] = field(default_factory=dict)

    def open(self) -> list[mx.array]:
        """The sums, for whoever computes them piece by piece: else the inputs stay in memory."""
        sums = [*self.plain.values(), *(each for stack in self.experts.values() for each in stack.values())]
        return [each.total for each in sums if each.total is not None]


class _Last:
    """The last inputs, and the layer that was given them first."""

    def __init__(self) -> None:
        self.path = ""
        self._inputs: tuple[Any, Any] = (None, None)
        self._before: object = None  # what that layer was given before
        self._given: dict[str, object] = {}  # path -> a mark that stands for all inputs so far

    def was(self, path: str, x: Any, indices: Any) -> bool:
        """Whether the layer at `path` is now given the same inputs, after the same ones, as `self.path`."""
        return self._same(x, indices) and path != self.path and self._given.get(path) is self._before

    def note(self, path: str, x: Any, indices: Any) -> None:
        if self.was(path, x, indices):
            self._given[path] = self._given[self.path]
            return
        if not self._same(x, indices):
            self.path, self._inputs, self._before = path, (x, indices), self._given.get(path)
        self._given[path] = object()

    def _same(self, x: Any, indices: Any) -> bool:
        return self._inputs[0] is x and self._inputs[1] is indices


@contextmanager
def taps(root: nn.Module, under: str = "", kind: type[Sum] = Sum) -> Iterator[Seen]:
    """Notes the inputs of every linear layer under `root`, whose path is `under`, while the block runs.

    `kind`: what is collected of them. Layers that are given the very same arrays (query, key and value) share
    one array of sums.
    """
    from mlx_lm.models.switch_layers import SwitchLinear

    seen = Seen()
    last = _Last()
    former: list[tuple[nn.Module, Any]] = []
    start = f"{under}." if under else ""

    def plain(path: str, x: Any) -> None:
        if last.was(path, x, None):
            seen.plain[path] = seen.plain[last.path].copy()
        else:
            seen.plain.setdefault(path, kind()).add(x.reshape(-1, x.shape[-1]))
        last.note(path, x, None)

    def by_expert(path: str, x: Any, indices: Any) -> None:
        if last.was(path, x, indices):
            seen.experts[path] = {number: each.copy() for number, each in seen.experts[last.path].items()}
        else:
            _by_expert(x, indices, seen.experts.setdefault(path, {}), kind)
        last.note(path, x, indices)

    def linear(kind: Any, path: str) -> Any:
        def call(self: Any, x: Any) -> Any:
            plain(path, x)
            return kind.__call__(self, x)

        return type(kind.__name__, (kind,), {"__call__": call})

    def switch(kind: Any, path: str) -> Any:
        def call(self: Any, x: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
            by_expert(path, x, indices)
            return kind.__call__(self, x, indices, *args, **kwargs)

        return type(kind.__name__, (kind,), {"__call__": call})

    def embedding(kind: Any, path: str) -> Any:
        def as_linear(self: Any, x: Any) -> Any:
            plain(path, x)
            return kind.as_linear(self, x)

        return type(kind.__name__, (kind,), {"as_linear": as_linear})

    makers = {nn.Linear: linear, SwitchLinear: switch, nn.Embedding: embedding, Lookup: embedding}
    try:
        for path, module in root.named_modules():
            if (maker := makers.get(type(module))) is not None:
                former.append((module, type(module)))
                module.__class__ = maker(type(module), start + path)
        yield seen
    finally:
        for module, kind in former:
            module.__class__ = kind


def _by_expert(x: mx.array, indices: mx.array, sums: dict[int, Sum], kind: type[Sum]) -> None:
    """Adds the inputs of a stack of experts: x [..., 1, columns] for the experts `indices` [...].

    Before the experts are sorted, x has one row for each token, and indices a number for each of its experts.
    """
    columns = x.shape[-1]
    rows = mx.broadcast_to(x[..., 0, :], (*indices.shape, columns)).reshape(-1, columns)
    chosen = np.array(indices.reshape(-1))
    order = np.argsort(chosen, kind="stable")
    numbers, starts = np.unique(chosen[order], return_index=True)
    for number, some in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        sums.setdefault(number, kind()).add(rows[mx.array(some)])
