"""Rounds a model for the inputs that a text causes, block by block, with one block's weights in memory.

The hidden states of all sequences come to a layer. The layer runs once with its unquantized weights, and the
second moments of the inputs of each linear layer are collected. Its weights are rounded, and the layer runs
again: what the rounded layer returns goes to the next one. So a layer makes up for some of the error of the
layers before it, and depends on all of them.

A block that is made already is read instead of rounded, so a run that was killed goes on at the first block
that is not there. An embedding that is also the head is rounded first, for the inputs that the head has in
the base without its adapter: so an adapter that changes late blocks leaves the early ones as they are.

The rule for what cannot be rounded like this: a module that is not a plain linear layer, a mode without a
grid of scale and bias, and an expert that saw fewer than LEAST tokens for each column of its weight are
counted. The first two are rounded by mlx, the expert for the inputs of all experts together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from builder.engine.arrays import Values
from builder.engine.blas import plain
from builder.engine.block import Block
from builder.engine.layers import listed_layers
from builder.engine.loading import LoadedAdapter
from builder.engine.recipe import Recipe
from builder.engine.rounding.lookup import Lookup, lookups, outside, to_float32, unrounded
from builder.engine.rounding.moments import Floats, Seen, Sum, taps
from builder.engine.rounding.shard import Made, rounded
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.walk import Run, walk
from builder.engine.stream import cut
from builder.errors import EngineError
from builder.spec.types import Quantization

Done = Callable[[str], Path | None]  # the file of a block that is made already
Write = Callable[[str, Made], Path]  # stores a block and returns its file


@dataclass
class Rounding:
    """A model whose blocks are rounded one after the other.

    `order`: all blocks, in the order in which the plan makes them. Blocks that stand there before the layers
    are rounded before the model runs, and those after the layers when it has run. `tokens`: [sequences,
    length].
    """

    model: nn.Module
    adapter: LoadedAdapter | None
    recipe: Recipe
    tokens: mx.array
    order: Sequence[str]
    target: str
    survival: bool = True
    tied: str = ""  # the path of the embedding that is also the head
    head: Floats | None = None  # the moments of what the head is given, for `tied`
    shelf: Shelf = field(default_factory=Shelf)  # keeps the hidden states
    _seen: list[str] = field(default_factory=list)
    _files: dict[str, Path] = field(default_factory=dict)

    def run(self, done: Done, write: Write) -> None:
        """Rounds every block of `order` that is not done. Raises BuildError."""
        blocks = cut(self.model, self.adapter, compiled=False)
        layers = layer_paths(self.model)
        outer = {name: self._values(block) for name, block in blocks.items() if name not in layers}
        start = next((at for at, name in enumerate(self.order) if name in layers), len(self.order))
        first = {
            name: self._make(blocks[name], outer.pop(name), self._for_head(), done, write)
            for name in self.order[:start]
        }

        def visit(path: str, layer: nn.Module, run: Run) -> Any:
            if (block := blocks.get(path)) is None:  # a layer without parameters
                return run()
            if path not in self._seen:
                self._check_order(path)
                self._seen.append(path)
                self._files[path] = done(path) or self._layer(block, layer, run, write)
            self._show(layer, path)
            made = run()
            self._show(layer, path)  # what was read is let go
            return made

        with lookups(self.model, layers) as tables:
            for values in outer.values():
                show(self.model, tables, stored(values), {})
            for file in first.values():
                show(self.model, tables, read(file), self.recipe.quantization)
            with taps(_Outer(self.model, layers)) as seen:
                walk(self.model, self.tokens, visit, shelf=self.shelf)
        for name in [name for name in self.order[start:] if name in outer]:
            self._make(blocks[name], outer.pop(name), seen, done, write)
        for name in self.order:  # a layer that no text reaches, for example one of a vision tower
            if name in layers and name not in self._seen:
                self._make(blocks[name], self._values(blocks[name]), Seen(), done, write)

    def _layer(self, block: Block, layer: nn.Module, run: Run, write: Write) -> Path:
        """Rounds a layer for what it is given. Nothing of that stays in memory."""
        values = self._values(block)  # once: the adapter's layers hold this module
        put(layer, block.name, as_float32(values))
        with taps(layer, block.name) as seen:
            run.watch(seen.open)
        return self._written(block, values, seen, write)

    def _for_head(self) -> Seen:
        """What an embedding that is also the head is given: half of it as the head, half as the lookup.

        A lookup takes each row as it is, so its moments are the unit matrix. Both halves have the same trace.
        """
        if self.head is None:
            return Seen()
        columns = len(self.head)
        scaled = self.head * np.float32(columns / np.trace(self.head))
        return Seen({self.tied: Sum(mx.array(scaled + np.eye(columns, dtype=np.float32)), 1)})

    def _values(self, block: Block) -> Values:
        """The block's weights, fused and cast, bit for bit as in any pass. Lazy where nothing is fused."""
        with plain():
            values = block.values(self.recipe.dtype)
            if block.layers:
                mx.eval([values.array(name) for name in values])
        return values

    def _make(self, block: Block, values: Values, seen: Seen, done: Done, write: Write) -> Path:
        """Rounds a block outside of the layers, unless it is done."""
        file = done(block.name) or self._written(block, values, seen, write)
        block.forget()
        return file

    def _check_order(self, path: str) -> None:
        """The plan's keys hold the blocks before a block: the model must call its layers in that order."""
        last = self._seen[-1] if self._seen else None
        if last is not None and self.order.index(path) < self.order.index(last):
            raise EngineError(
                target=self.target,
                what=f'the model calls "{path}" after "{last}"',
                hint="Calibrated rounding needs layers that are called in order. Remove `calibration`.",
            )

    def _show(self, layer: nn.Module, path: str) -> None:
        """Gives a layer its rounded weights, lazy."""
        put(layer, path, read_rounded(self._files[path], self.recipe.quantization))

    def _written(self, block: Block, values: Values, seen: Seen, write: Write) -> Path:
        how, target = self.recipe.quantization, self.target
        file = write(block.name, rounded(block, values, how, seen, target, survival=self.survival))
        block.forget()
        return file


def head_moments(model: nn.Module, tokens: mx.array, tied: str, shelf: Shelf | None = None) -> Floats | None:
    """The second moments of what the head is given, where the head is the embedding at `tied`.

    The model runs unquantized, with one layer in memory, and cannot be used afterwards.
    """
    layers = layer_paths(model)

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        made = run()
        empty(layer)
        return made

    with lookups(model, layers) as tables, taps(_Outer(model, layers)) as seen:
        to_float32(model, tables)
        walk(model, tokens, visit, shelf=shelf)
    return seen.plain[tied].mean if tied in seen.plain else None


def layer_paths(model: nn.Module) -> frozenset[str]:
    """The paths of the modules that `walk` visits."""
    layers = {id(layer) for layer in listed_layers(model)}
    return frozenset(path for path, module in model.named_modules() if id(module) in layers)


class _Outer(nn.Module):  # type: ignore[misc]
    """The modules of a model outside of its layers, under their own paths."""

    def __init__(self, model: nn.Module, layers: frozenset[str]) -> None:
        super().__init__()
        self._outside = list(outside(model, layers))

    def named_modules(self) -> list[tuple[str, nn.Module]]:
        return self._outside


def as_float32(values: Values) -> dict[str, mx.array]:
    """The tensors of a block, floating ones in float32."""
    return exact(stored(values), {})


def stored(values: Values) -> dict[str, mx.array]:
    """The tensors of a block as they are."""
    return {name: values.array(name) for name in values}


def read_rounded(file: Path, quantization: Mapping[str, Quantization]) -> dict[str, mx.array]:
    """The weights that a rounded shard stands for, in float32, lazy."""
    return exact(read(file), quantization)


def read(file: Path) -> Mapping[str, mx.array]:
    """The tensors of a shard, lazy."""
    tensors: Any = mx.load(str(file), format="safetensors")
    return dict(tensors)


def exact(tensors: Mapping[str, mx.array], quantization: Mapping[str, Quantization]) -> dict[str, mx.array]:
    """The weights that tensors stand for, in float32, lazy. `quantization` says which of them are rounded."""
    arrays: dict[str, mx.array] = {}
    for name, array in tensors.items():
        path, _, leaf = name.rpartition(".")
        how = quantization.get(path)
        if how is None or leaf not in ("weight", "scales", "biases"):
            arrays[name] = array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        elif leaf == "weight":
            arrays[name] = unrounded(array, tensors[f"{path}.scales"], tensors.get(f"{path}.biases"), how)
    return arrays


def show(
    model: nn.Module,
    tables: Mapping[str, Lookup],
    tensors: Mapping[str, mx.array],
    quantization: Mapping[str, Quantization],
) -> None:
    """Gives a model the tensors of a block outside of its layers, in float32 where the model runs."""
    for path, table in tables.items():
        table.take(tensors, path, quantization.get(path))
    rest = {name: array for name, array in tensors.items() if name.rpartition(".")[0] not in tables}
    put(model, "", exact(rest, quantization))


def put(module: nn.Module, path: str, arrays: Mapping[str, mx.array]) -> None:
    """Puts arrays under full names into the module at `path`."""
    start = len(path) + 1 if path else 0
    module.update(tree_unflatten([(name[start:], array) for name, array in arrays.items()]))


def empty(layer: nn.Module) -> None:
    """Lets the weights of a layer go."""
    layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))
