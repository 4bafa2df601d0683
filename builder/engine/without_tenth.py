"""How far a model without some of its experts is from the whole model, with one layer in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.engine.block import Block
from builder.engine.rounding.points import Opened, divergence
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import empty, layer_paths, put
from builder.engine.rounding.walk import Run, walk
from builder.engine.routing import floats

Step = Callable[[int, int], None]


def lost(
    whole: Opened, other: Opened, tokens: mx.array, counted: mx.array, step: Step, shelf: Shelf
) -> float | None:
    """KL of the whole model to the other one: the mean over the tokens that count, in nats.

    `counted` [sequences, length] is 1 where what is predicted counts. `shelf` keeps the hidden states.
    Neither model can be used afterwards. None for a model whose layers return more than one hidden state for
    each token.
    """
    layers = len(layer_paths(whole.model))
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        step(done, 2 * layers)

    ours, theirs = (_last(each, tokens, tell, shelf) for each in (other, whole))
    if ours is None or theirs is None:
        return None
    return divergence((whole.model, theirs), (other.model, ours), tokens, counted, shelf)


def _last(opened: Opened, tokens: mx.array, tell: Callable[[], None], shelf: Shelf) -> mx.array | None:
    """What the last layer returns. None where the layers do not form one chain of hidden states."""
    layers = layer_paths(opened.model)
    blocks: Mapping[str, Block] = opened.blocks
    for name, block in blocks.items():
        if name not in layers:
            put(opened.model, "", floats(block))
    last: list[Any] = []
    chain = True

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        nonlocal chain
        if (block := blocks.get(path)) is not None:
            put(layer, path, floats(block))
        made = run()
        if block is not None:
            empty(layer)
            block.forget()
        fits = isinstance(made, mx.array) and made.ndim == 3 and made.shape[:2] == tokens.shape
        chain = chain and fits and (not last or run.args[0] is last[-1])
        last[:] = [made]
        tell()
        return made

    walk(opened.model, tokens, visit, shelf=shelf)
    return last[-1] if chain and last else None
