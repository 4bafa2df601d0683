"""The slopes of what comes after the layers, of one layer, and of what comes before the layers.

A slope is <gradient, what rounding adds to the weight>, one number for each path and sequence. Each function
takes the gradient of what it returns and gives the gradient of its inputs, with the slopes of its paths.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from builder.engine.rounding.points import Weights, after_layers, at_place, at_places, logprobs
from builder.engine.rounding.stream import put
from builder.engine.rounding.walk import Run, walk

Slopes = dict[str, npt.NDArray[np.float64]]  # path -> [sequences]


class _Stop(Exception):
    """The first layer was reached."""


def head_slopes(
    model: Any,
    last: mx.array,
    outer: Weights,
    moved: Weights,
    tokens: mx.array,
    counted: mx.array,
    seed: int,
) -> tuple[Slopes, mx.array]:
    """What comes after the layers, and the gradient of what the layers return.

    What is differentiated: the sum of sqrt(p) * z * log p over all tokens of the vocabulary, at each place
    that counts. p is what the model says there, and z is drawn from a normal distribution.
    """
    flows, made = [], []
    names = sorted(moved)
    for at in range(tokens.shape[0]):
        some, counts = tokens[at : at + 1], counted[at : at + 1, :, None]
        drawn = mx.random.key(seed + at)

        def drawn_sum(
            hidden: mx.array, sizes: mx.array, some: Any = some, counts: Any = counts, drawn: Any = drawn
        ) -> Any:
            put(model, "", at_places(outer, moved, names, sizes))
            logs = logprobs(after_layers(model, some, hidden))
            weights = mx.stop_gradient(mx.exp(logs / 2)) * mx.random.normal(logs.shape, key=drawn)
            return (weights * logs * counts).sum()

        flow, sizes = mx.grad(drawn_sum, (0, 1))(last[at : at + 1], mx.zeros(len(names)))
        mx.eval(flow, sizes)
        flows.append(flow)
        made.append(sizes)
        mx.clear_cache()
    put(model, "", at_place(outer, moved, 0.0))
    return _by_path(names, made), mx.concatenate(flows)


def layer_slopes(
    layer: nn.Module, path: str, run: Run, flow: mx.array, exact: Weights, moved: Weights
) -> tuple[mx.array, Slopes]:
    """The gradient of the inputs of a layer, and the slopes of its paths."""
    mx.eval(exact, moved)
    names = sorted(moved)
    flows: list[mx.array] = []
    made: list[mx.array] = []
    run.size = 1  # the slopes of each sequence are squared
    pieces = run.pieces()
    while some := [each for _, each in zip(run.streams, pieces, strict=False)]:
        open_now: list[mx.array] = []
        for stream, (args, kwargs) in zip(run.streams, some, strict=False):
            at = len(flows)

            def piece(hidden: mx.array, sizes: mx.array, args: Any = args, kwargs: Any = kwargs) -> mx.array:
                put(layer, path, at_places(exact, moved, names, sizes))
                out: mx.array = run.forward(hidden, *args[1:], **kwargs)
                return out

            with mx.stream(stream):
                _, (back, sizes) = mx.vjp(piece, [args[0], mx.zeros(len(names))], [flow[at : at + 1]])
            flows.append(back)
            made.append(sizes)
            open_now += [back, sizes]
        mx.eval(open_now)
        mx.clear_cache()
    return mx.concatenate(flows), _by_path(names, made)


def embedding_slopes(model: Any, flow: mx.array, outer: Weights, moved: Weights, tokens: mx.array) -> Slopes:
    """What comes before the layers."""
    names = sorted(moved)
    made = []
    for at in range(tokens.shape[0]):

        def before(sizes: mx.array, some: Any = tokens[at : at + 1]) -> mx.array:
            put(model, "", at_places(outer, moved, names, sizes))
            reached: list[mx.array] = []

            def visit(path: str, layer: nn.Module, run: Run) -> Any:
                reached.append(run.args[0])
                raise _Stop

            with suppress(_Stop):
                walk(model, some, visit, settled=False)
            return reached[0]

        _, (sizes,) = mx.vjp(before, [mx.zeros(len(names))], [flow[at : at + 1]])
        mx.eval(sizes)
        made.append(sizes)
    return _by_path(names, made)


def _by_path(names: list[str], made: list[mx.array]) -> Slopes:
    """Of arrays [names], one for each sequence."""
    table = np.array(mx.stack(made)).astype(np.float64)
    return {name.removesuffix(".weight"): table[:, at] for at, name in enumerate(names)}
