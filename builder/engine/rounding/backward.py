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

from builder.engine.rounding.points import (
    Places,
    Weights,
    after_layers,
    at_place,
    at_places,
    logprobs,
    places,
)
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import put
from builder.engine.rounding.walk import Run, side_by_side, walk

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
    shelf: Shelf,
) -> tuple[Slopes, mx.array]:
    """What comes after the layers, and the gradient of what the layers return.

    What is differentiated: the sum of sqrt(p) * z * log p over all tokens of the vocabulary, at each place
    that counts. p is what the model says there, and z is drawn from a normal distribution. Other places have
    no gradient, and are left out.
    """
    names = sorted(moved)
    jobs = [(at, part) for at in range(tokens.shape[0]) for part in places(counted[at])]

    def slopes(at: int, part: Places) -> tuple[mx.array, mx.array]:
        key = mx.random.key(seed + at * tokens.shape[1] + part.at[0])

        def drawn_sum(hidden: mx.array, sizes: mx.array) -> mx.array:
            put(model, "", at_places(outer, moved, names, sizes))
            logs = logprobs(after_layers(model, part.of(tokens[at : at + 1]), hidden))
            weights = mx.stop_gradient(mx.exp(logs / 2)) * mx.random.normal(logs.shape, key=key)
            return (weights * logs * part.counts).sum()

        flow, sizes = mx.grad(drawn_sum, (0, 1))(
            part.of(shelf.part(last, slice(at, at + 1))), mx.zeros(len(names))
        )
        return flow, sizes

    flow = mx.zeros(last.shape)
    made = mx.zeros((tokens.shape[0], len(names)))
    for (at, part), (own, sizes) in zip(jobs, side_by_side(lambda job: slopes(*job), jobs), strict=True):
        flow[at, mx.array(part.at)] += own[0]
        made[at] += sizes
    mx.eval(flow, made)
    put(model, "", at_place(outer, moved, 0.0))
    return _by_path(names, list(made)), flow


def layer_slopes(
    layer: nn.Module, path: str, run: Run, flow: mx.array, exact: Weights, moved: Weights
) -> tuple[mx.array, Slopes]:
    """The gradient of the inputs of a layer, and the slopes of its paths."""
    mx.eval(exact, moved)
    names = sorted(moved)
    run.size = 1  # the slopes of each sequence are squared

    def slopes(numbered: tuple[int, tuple[list[Any], dict[str, Any]]]) -> tuple[mx.array, mx.array]:
        at, (args, kwargs) = numbered

        def piece(hidden: mx.array, sizes: mx.array) -> mx.array:
            put(layer, path, at_places(exact, moved, names, sizes))
            out: mx.array = run.forward(hidden, *args[1:], **kwargs)
            return out

        back, sizes = mx.vjp(piece, [args[0], mx.zeros(len(names))], [flow[at : at + 1]])[1]
        return back, sizes

    found = side_by_side(slopes, enumerate(run.pieces()))
    return mx.concatenate([back for back, _ in found]), _by_path(names, [sizes for _, sizes in found])


def embedding_slopes(model: Any, flow: mx.array, outer: Weights, moved: Weights, tokens: mx.array) -> Slopes:
    """What comes before the layers."""
    names = sorted(moved)

    def slopes(at: int) -> mx.array:
        def before(sizes: mx.array) -> mx.array:
            put(model, "", at_places(outer, moved, names, sizes))
            reached: list[mx.array] = []

            def visit(path: str, layer: nn.Module, run: Run) -> Any:
                reached.append(run.args[0])
                raise _Stop

            with suppress(_Stop):
                walk(model, tokens[at : at + 1], visit, settled=False)
            return reached[0]

        (made,) = mx.vjp(before, [mx.zeros(len(names))], [flow[at : at + 1]])[1]
        return made

    return _by_path(names, side_by_side(slopes, range(tokens.shape[0])))


def _by_path(names: list[str], made: list[mx.array]) -> Slopes:
    """Of arrays [names], one for each sequence."""
    table = np.array(mx.stack(made)).astype(np.float64)
    return {name.removesuffix(".weight"): table[:, at] for at, name in enumerate(names)}
