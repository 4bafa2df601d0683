"""How large the inputs of each weight are: the sums of their squares, by column, while a text runs through.

The model runs as it is, unquantized and with its adapter, layer by layer: one layer's weights are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from builder.engine.blas import plain
from builder.engine.loading import LoadedAdapter
from builder.engine.rounding.lookup import lookups
from builder.engine.rounding.moments import Floats, Squares, Sum, taps
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import as_float32, empty, layer_paths, put, show, stored
from builder.engine.rounding.walk import Run, walk
from builder.engine.stream import cut

Step = Callable[[int, int], None]  # step(layers done, layers)


@dataclass(frozen=True)
class Squared:
    """The inputs of one weight. `sums`: of squares, float32 [experts, columns], one row where there is one
    matrix. `counts`: how many inputs they are of, float32 [experts].
    """

    sums: Floats
    counts: Floats


def importance(
    model: nn.Module,
    adapter: LoadedAdapter | None,
    dtype: Any,
    tokens: mx.array,
    step: Step,
    shelf: Shelf | None = None,
) -> dict[str, Squared]:
    """Path of a linear layer -> its inputs, for all that stand in the model's layers.

    tokens: [sequences, length]. `shelf` keeps the hidden states. The model cannot be used afterwards.

    Raises BuildError.
    """
    blocks = cut(model, adapter, compiled=False)
    layers = layer_paths(model)
    found: dict[str, Squared] = {}
    done: list[str] = []

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        if (block := blocks.get(path)) is None:  # a layer without parameters
            return run()
        put(layer, path, as_float32(_values(block, dtype)))
        experts = {f"{path}.{at}" if at else path: module for at, module in layer.named_modules()}
        with taps(layer, path, Squares) as seen:
            made = run(seen.open)
        for name, total in seen.plain.items():
            _add(found, name, {0: total}, 1)
        for name, totals in seen.experts.items():
            _add(found, name, totals, experts[name].weight.shape[0])
        empty(layer)
        block.forget()
        done.append(path)
        step(len(done), len(layers))
        return made

    with lookups(model, layers) as tables:
        for name, block in blocks.items():
            if name not in layers:
                show(model, tables, stored(_values(block, dtype)), {})
        walk(model, tokens, visit, shelf=shelf)
    return found


def _values(block: Any, dtype: Any) -> Any:
    """The block's weights, fused and cast, bit for bit as in any pass."""
    with plain():
        values = block.values(dtype)
        mx.eval([values.array(name) for name in values])
    return values


def _add(found: dict[str, Squared], path: str, totals: dict[int, Sum], size: int) -> None:
    """Notes what a weight of `size` matrices was given. A layer that runs twice is given both."""
    columns = next(total.total.shape[0] for total in totals.values() if total.total is not None)
    sums, counts = np.zeros((size, columns), np.float32), np.zeros(size, np.float32)
    if path in found:
        sums, counts = found[path].sums, found[path].counts
    for number, total in totals.items():
        if total.total is not None:
            sums[number] += np.array(total.total)
            counts[number] += total.count
    found[path] = Squared(sums, counts)
