"""The gradients of what comes after the layers, of one layer, and of what comes before the layers.

Each takes the gradient of what it returns and gives the gradient of its inputs, with the cost of each of its
paths: <gradient, what rounding adds to the weight>. `place` says at which part of the rounding errors.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.engine.rounding.points import (
    Weights,
    added,
    after_layers,
    at_place,
    at_places,
    logprobs,
    numbers,
)
from builder.engine.rounding.stream import put
from builder.engine.rounding.walk import Run, walk


class _Stop(Exception):
    """The first layer was reached."""


def head_gradient(
    model: Any,
    exact: Any,
    exact_last: mx.array,
    last: mx.array,
    outer: Weights,
    moved: Weights,
    place: float,
    tokens: mx.array,
    counted: mx.array,
) -> tuple[dict[str, float], mx.array]:
    """What comes after the layers: the costs of its paths, and the gradient of what the layers return."""
    costs: dict[str, float] = {}
    flows = []
    names = sorted(moved)
    for at in range(tokens.shape[0]):
        some, counts = tokens[at : at + 1], counted[at : at + 1]
        wanted = mx.stop_gradient(logprobs(after_layers(exact, some, exact_last[at : at + 1])))
        mx.eval(wanted)

        def loss(
            hidden: mx.array,
            sizes: mx.array,
            some: Any = some,
            counts: Any = counts,
            wanted: Any = wanted,
        ) -> Any:
            put(model, "", at_places(outer, moved, names, place + sizes))
            logs = logprobs(after_layers(model, some, hidden))
            return ((mx.exp(wanted) * (wanted - logs)).sum(-1) * counts).sum()

        _, (flow, sizes) = mx.value_and_grad(loss, (0, 1))(last[at : at + 1], mx.zeros(len(names)))
        mx.eval(flow, sizes)
        flows.append(flow)
        costs = added(costs, dict(zip(names, numbers(sizes), strict=True)))
        mx.clear_cache()
    put(model, "", at_place(outer, moved, place))
    return {name.removesuffix(".weight"): value for name, value in costs.items()}, mx.concatenate(flows)


def layer_gradient(
    layer: nn.Module,
    path: str,
    run: Run,
    flow: mx.array,
    weights: tuple[Weights, Weights],
    place: float,
) -> tuple[mx.array, dict[str, float]]:
    """The gradient of the inputs of a layer, and the costs of its paths."""
    exact, moved = weights
    mx.eval(exact, moved)
    names = sorted(moved)
    flows: list[mx.array] = []
    sums: list[mx.array] = []
    pieces = run.pieces()
    while some := [each for _, each in zip(run.streams, pieces, strict=False)]:
        open_now: list[mx.array] = []
        for stream, (args, kwargs) in zip(run.streams, some, strict=False):
            at = len(flows) * run.size

            def piece(hidden: mx.array, sizes: mx.array, args: Any = args, kwargs: Any = kwargs) -> mx.array:
                put(layer, path, at_places(exact, moved, names, place + sizes))
                made: mx.array = run.forward(hidden, *args[1:], **kwargs)
                return made

            with mx.stream(stream):
                _, (back, sizes) = mx.vjp(piece, [args[0], mx.zeros(len(names))], [flow[at : at + run.size]])
            flows.append(back)
            sums.append(sizes)
            open_now += [back, sizes]
        mx.eval(open_now)
        mx.clear_cache()
    total = numbers(mx.stack(sums).sum(0)) if names else []
    found = {n.removesuffix(".weight"): value for n, value in zip(names, total, strict=True)}
    return mx.concatenate(flows), found


def embedding_gradient(
    model: Any,
    flow: mx.array,
    outer: Weights,
    moved: Weights,
    place: float,
    tokens: mx.array,
) -> dict[str, float]:
    """What comes before the layers."""
    names = sorted(moved)

    def before(sizes: mx.array) -> mx.array:
        put(model, "", at_places(outer, moved, names, place + sizes))
        reached: list[mx.array] = []

        def visit(path: str, layer: nn.Module, run: Run) -> Any:
            reached.append(run.args[0])
            raise _Stop

        with suppress(_Stop):
            walk(model, tokens, visit, settled=False)
        return reached[0]

    _, (sizes,) = mx.vjp(before, [mx.zeros(len(names))], [flow])
    return {n.removesuffix(".weight"): value for n, value in zip(names, numbers(sizes), strict=True)}
