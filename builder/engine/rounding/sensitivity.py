"""What the rounding of each weight costs: its share of the divergence of the rounded model.

Let W be the exact weights and D what rounding adds to them. KL(W || W + tD) goes from 0 at t = 0 to the cost
of the rounded model at t = 1, and its derivative is the sum over all weights of <gradient, D>. So the
integral of one weight's term from 0 to 1 is that weight's share, and the shares add up to the cost (Aumann
and Shapley). A second-order estimate at W itself ranks the weights, but misses the cost where errors are
large: it summed to 0.05 where 0.29 was measured. Two points of Gauss and Legendre stand for the integral.

The gradient is streamed. The model runs forward, and the inputs of each layer are kept. Then one layer after
the other is run again and differentiated, from the last to the first, with one layer's weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.engine.loading import one_line
from builder.engine.rounding.backward import embedding_gradient, head_gradient, layer_gradient
from builder.engine.rounding.points import (
    Opened,
    Shares,
    Weights,
    added,
    after_layers,
    at_place,
    logprobs,
    numbers,
)
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import as_float32, empty, layer_paths, put, read_rounded
from builder.engine.rounding.walk import Run, walk
from builder.errors import BuildError
from builder.spec.types import Quantization

POINTS = ((0.2113248654, 0.5), (0.7886751346, 0.5))  # Gauss-Legendre on [0, 1]: place and weight
Step = Callable[[int, int], None]


class NotDifferentiable(BuildError):
    """{target}: what each weight costs cannot be measured: {what}"""

    exit_code = 2
    hint = "Use `bits` instead of `target`."


@dataclass
class Sensitivity:
    """Measures the shares of every path in `quantization`, as it is rounded in `files` (block -> shard)."""

    open: Callable[[], Opened]
    files: Mapping[str, Path]
    quantization: Mapping[str, Quantization]
    dtype: mx.Dtype | None
    tokens: mx.array
    counted: mx.array  # [sequences, length]: 1 where what is predicted counts, else 0
    target: str
    step: Step = lambda done, total: None
    shelf: Shelf = field(default_factory=Shelf)  # keeps what layers return

    def shares(self) -> Shares:
        """Raises NotDifferentiable, EngineError."""
        exact = self.open()
        layers = layer_paths(exact.model)
        total = (1 + 2 * len(POINTS)) * len(layers)
        self._done, self._total = 0, total
        outer = self._outer(exact, layers)
        put(exact.model, "", outer)
        last, _ = self._forward(exact, layers, 0.0)
        costs = dict.fromkeys(self.quantization, 0.0)
        try:
            for place, weight in POINTS:
                found = self._at(place, exact.model, last, outer, layers)
                for path, value in found.items():
                    costs[path] += weight * value
        except (ValueError, RuntimeError, NotImplementedError) as error:  # an operation without a gradient
            raise self._refused(one_line(error)) from error
        return Shares({path: value / self.count for path, value in costs.items()}, round(self.count))

    def divergence(self) -> float:
        """KL of the exact model to the rounded one: the mean over the tokens that count, in nats."""
        exact, other = self.open(), self.open()
        layers = layer_paths(exact.model)
        self._done, self._total = 0, 2 * len(layers)
        outer = self._outer(exact, layers)
        put(exact.model, "", outer)
        put(other.model, "", at_place(outer, self._moved_outside(outer, layers), 1.0))
        ours, theirs = self._forward(other, layers, 1.0)[0], self._forward(exact, layers, 0.0)[0]
        total = 0.0
        for at in range(self.tokens.shape[0]):
            some = self.tokens[at : at + 1]
            wanted = logprobs(after_layers(exact.model, some, theirs[at : at + 1]))
            logs = logprobs(after_layers(other.model, some, ours[at : at + 1]))
            lost = (mx.exp(wanted) * (wanted - logs)).sum(-1) * self.counted[at : at + 1]
            total += numbers(lost.sum()[None])[0]
            mx.clear_cache()
        return total / self.count

    @property
    def count(self) -> float:
        """How many tokens count."""
        return numbers(self.counted.sum()[None])[0]

    # -- forward -------------------------------------------------------------------------------------

    def _forward(
        self, opened: Opened, layers: frozenset[str], place: float
    ) -> tuple[mx.array, list[tuple[str, Run]]]:
        """What the last layer returns at a point, and the calls of the layers with their inputs."""
        calls: list[tuple[str, Run]] = []
        last: list[mx.array] = []

        def visit(path: str, layer: nn.Module, run: Run) -> Any:
            if calls and run.args[0] is not last[-1]:
                raise self._refused(f'"{path}" does not take what the layer before it returns')
            exact, moved = self._weights(opened, path)
            put(layer, path, at_place(exact, moved if place else {}, place))
            made = run()
            empty(layer)
            opened.blocks[path].forget()
            if not isinstance(made, mx.array):
                raise self._refused(f'"{path}" returns more than one array')
            if made.ndim != 3 or made.shape[:2] != self.tokens.shape:  # cut by sequence it would be nonsense
                raise self._refused(f'"{path}" returns more than one hidden state for each token')
            calls.append((path, run))
            last[:] = [made]
            self._tell()
            return made

        walk(opened.model, self.tokens, visit, shelf=self.shelf)
        if not calls:
            raise self._refused("the model calls none of its layers")
        return last[-1], calls

    def _refused(self, what: str) -> NotDifferentiable:
        return NotDifferentiable(target=self.target, what=what)

    def _weights(self, opened: Opened, path: str) -> tuple[Weights, Weights]:
        """The exact weights of a block, and what rounding adds to those that it changes. Float32, lazy."""
        block = opened.blocks[path]
        exact = as_float32(block.values(self.dtype))
        rounded = read_rounded(self.files[path], self.quantization)
        names = [n for n in exact if n.rpartition(".")[0] in self.quantization and n.endswith(".weight")]
        return exact, {name: rounded[name] - exact[name] for name in names}

    def _outer(self, opened: Opened, layers: frozenset[str]) -> dict[str, mx.array]:
        """The exact weights outside of the layers."""
        found: dict[str, mx.array] = {}
        for name, block in opened.blocks.items():
            if name not in layers:
                found |= as_float32(block.values(self.dtype))
        mx.eval(found)
        return found

    # -- backward ------------------------------------------------------------------------------------

    def _at(
        self, place: float, exact: Any, exact_last: mx.array, outer: Weights, layers: frozenset[str]
    ) -> dict[str, float]:
        """<gradient, D> of each path, where the rounding errors are `place` of their size."""
        opened = self.open()
        moved = self._moved_outside(outer, layers)
        put(opened.model, "", at_place(outer, moved, place))
        last, calls = self._forward(opened, layers, place)
        costs, flow = head_gradient(
            opened.model, exact, exact_last, last, outer, moved, place, self.tokens, self.counted
        )
        again = self.open()
        modules = dict(opened.model.named_modules())
        for path, run in reversed(calls):
            weights = self._weights(again, path)
            flow, found = layer_gradient(modules[path], path, run, flow, weights, place)
            empty(modules[path])
            again.blocks[path].forget()
            costs = added(costs, found)
            self._tell()
        return added(costs, embedding_gradient(opened.model, flow, outer, moved, place, self.tokens))

    def _moved_outside(self, outer: Weights, layers: frozenset[str]) -> dict[str, mx.array]:
        moved: dict[str, mx.array] = {}
        for name, file in self.files.items():
            if name not in layers:
                for tensor, array in read_rounded(file, self.quantization).items():
                    if tensor.rpartition(".")[0] in self.quantization and tensor.endswith(".weight"):
                        moved[tensor] = array - outer[tensor]
        mx.eval(moved)
        return moved

    def _tell(self) -> None:
        self._done += 1
        self.step(self._done, self._total)
