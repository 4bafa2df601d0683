"""What the rounding of each weight costs, and how far the rounded model is from the exact one.

To second order, rounding a weight by D costs half of D's square in the Fisher information: the curvature of
KL at the exact model. Let p be what the model says, z drawn from a normal distribution for each token of the
vocabulary, and g the gradient of the sum of sqrt(p) * z * log p. Then the mean of the outer product of g is
the Fisher information. So the mean of <g, D>^2 over sequences, halved, is what rounding this weight alone
costs. It is never below zero, and a weight's cost does not depend on how other weights are rounded. Drawing
tokens instead of z has the same mean, but a model that is sure of itself draws the same ones nearly always.

The gradient is streamed. The model runs forward, and the inputs of each layer are kept. Then one layer after
the other is run again and differentiated, from the last to the first, with one layer's weights in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.console.words import one_line
from builder.engine.rounding.backward import Slopes, embedding_slopes, head_slopes, layer_slopes
from builder.engine.rounding.points import Opened, Weights, at_place, divergence, numbers
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import as_float32, empty, layer_paths, put, read_rounded
from builder.engine.rounding.stream import exact as restored
from builder.engine.rounding.walk import Run, walk
from builder.errors import BuildError
from builder.spec.types import Quantization

SEED = 0  # of what is drawn
Step = Callable[[int, int], None]


class NotDifferentiable(BuildError):
    """{target}: what each weight costs cannot be measured: {what}"""

    exit_code = 2
    hint = "Use `bits` instead of `target`."


@dataclass
class Sensitivity:
    """Measures the weights in `quantization`, as they are rounded in `files` (block -> shard).

    files: None rounds to nearest in memory, as mlx does.
    """

    open: Callable[[], Opened]
    files: Mapping[str, Path] | None
    quantization: Mapping[str, Quantization]
    dtype: mx.Dtype | None
    tokens: mx.array
    counted: mx.array  # [sequences, length]: 1 where what is predicted counts, else 0
    target: str
    step: Step = lambda done, total: None
    shelf: Shelf = field(default_factory=Shelf)  # keeps what layers return

    def costs(self) -> dict[str, float]:
        """Path -> nats for each token that rounding this weight costs.

        Raises NotDifferentiable, EngineError.
        """
        exact, again = self.open(), self.open()
        self._done, self._total = 0, 2 * len(layer_paths(exact.model))
        outer = self._outer(exact)
        last, calls = self._forward(exact, 0.0)
        try:
            slopes = self._slopes(exact.model, again, outer, last, calls)
        except (ValueError, RuntimeError, NotImplementedError) as error:  # an operation without a gradient
            raise self._refused(one_line(error)) from error
        squares = {path: float((each**2).sum()) for path, each in slopes.items()}
        return {path: squares.get(path, 0.0) / 2 / self.count for path in self.quantization}

    def exact(self) -> mx.array:
        """What the last layer of the exact model returns: once, for all models that are compared with it."""
        opened = self.open()
        self._done, self._total = 0, len(layer_paths(opened.model))
        self._outer(opened)
        return self._forward(opened, 0.0)[0]

    def divergence(self, last: mx.array) -> float:
        """KL of the exact model to the rounded one: the mean over the tokens that count, in nats.

        last: what `exact` gave, for the same text.
        """
        exact, other = self.open(), self.open()
        self._done, self._total = 0, len(layer_paths(other.model))
        outer = self._outer(exact)
        put(other.model, "", at_place(outer, self._moved_outside(other), 1.0))
        ours = self._forward(other, 1.0)[0]
        ran = (exact.model, last), (other.model, ours)
        return divergence(*ran, self.tokens, self.counted, self.shelf)

    @property
    def count(self) -> float:
        """How many tokens count."""
        return numbers(self.counted.sum()[None])[0]

    # -- forward -------------------------------------------------------------------------------------

    def _forward(self, opened: Opened, place: float) -> tuple[mx.array, list[tuple[str, Run]]]:
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
        values = block.values(self.dtype)
        exact = as_float32(values)
        names = [n for n in exact if n.rpartition(".")[0] in self.quantization and n.endswith(".weight")]
        if self.files is not None:
            rounded = read_rounded(self.files[path], self.quantization)
        else:
            rounded = {}
            for name in names:
                own = name.removesuffix(".weight")
                made = block.quantized(own, values, self.quantization[own])
                rounded |= restored(made, self.quantization)
        return exact, {name: rounded[name] - exact[name] for name in names}

    def _outer(self, opened: Opened) -> dict[str, mx.array]:
        """The exact weights outside of the layers, which the model gets."""
        layers = layer_paths(opened.model)
        found: dict[str, mx.array] = {}
        for name, block in opened.blocks.items():
            if name not in layers:
                found |= as_float32(block.values(self.dtype))
        mx.eval(found)
        put(opened.model, "", found)
        return found

    # -- backward ------------------------------------------------------------------------------------

    def _slopes(
        self, model: Any, again: Opened, outer: Weights, last: mx.array, calls: Sequence[tuple[str, Run]]
    ) -> Slopes:
        """<gradient, D> of each path, for each sequence."""
        moved = self._moved_outside(again)
        found, flow = head_slopes(model, last, outer, moved, self.tokens, self.counted, SEED, self.shelf)
        modules = dict(model.named_modules())
        for path, run in reversed(calls):
            flow, own = layer_slopes(modules[path], path, run, flow, *self._weights(again, path))
            empty(modules[path])
            again.blocks[path].forget()
            found |= own
            self._tell()
        first = embedding_slopes(model, flow, outer, moved, self.tokens)
        return found | {path: found[path] + each if path in found else each for path, each in first.items()}

    def _moved_outside(self, opened: Opened) -> dict[str, mx.array]:
        moved: dict[str, mx.array] = {}
        layers = layer_paths(opened.model)
        for path in opened.blocks:
            if path not in layers:
                moved |= self._weights(opened, path)[1]
        mx.eval(moved)
        return moved

    def _tell(self) -> None:
        self._done += 1
        self.step(self._done, self._total)
