"""Scores a model larger than memory, with the weights of one layer at a time, for any architecture.

mlx computes nothing until it is asked to. So the model's own code first runs over every batch. That only
builds the graph of the computation, and each layer notes what it returned. Then the model lets go of
its parameters, and one layer after the other is computed for all batches. The weights of a layer are read
once, when the first batch needs them, and freed after the last batch. Memory holds the hidden states of all
batches, the weights of one layer, the notes (about 75 KB for each layer of each batch), and what is used
again later (a tied embedding, until the end).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.engine.layers import listed_layers
from builder.evaluate.process import Say, Step, unsaid, untold
from builder.evaluate.worker.by_expert import score_by_expert, suits
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import Scorable
from builder.evaluate.worker.scoring import (
    Gather,
    Reduce,
    batches,
    begin,
    deliver,
    install_gather,
    logits,
    positions_at_once,
)
from builder.evaluate.worker.walk import Unsuited

Steps = deque[list[mx.array]]  # what the layers returned for one batch, in order, not computed yet


def score_larger(
    load: Callable[[], Scorable],
    asks: Sequence[Ask],
    reduce: Reduce,
    size: int = 8,
    step: Step = untold,
    say: Say = unsaid,
) -> None:
    """Scores what `load` gives. On a CPU a mixture of experts is multiplied by expert, where that works.

    `step` is told how many of the bytes of all weights are done, and `say` where it does not work.
    """
    scorable = by_expert_or_loaded(load, asks, reduce, size, step, say)
    if scorable is None:
        return
    model, total = scorable.model, sum(scorable.sizes.values())
    del scorable  # it would keep the weights of all layers
    step(0, total)
    score_by_layer(model, asks, reduce, size, lambda done, of: step(total * done // of, total))


def by_expert_or_loaded(
    load: Callable[[], Scorable], asks: Sequence[Ask], reduce: Reduce, size: int, step: Step, say: Say
) -> Scorable | None:
    """Scores what `load` gives by expert. Where that does not suit it, returns it, and scores nothing."""
    with _reader():
        scorable = load()
    if not suits(scorable):
        return scorable
    try:
        score_by_expert(scorable, asks, reduce, size, step)
    except Unsuited as why:
        say(f"experts are multiplied token by token, because the model cannot be stopped at each ({why})")
        return load()  # the weights of the former may be lost
    return None


def _reader() -> AbstractContextManager[Any]:
    """On a CPU, what is read is read on a stream of its own: beside the products, not in a row with them."""
    cpu = mx.Device(mx.cpu)
    return mx.stream(mx.new_stream(cpu)) if mx.default_device() == cpu else nullcontext()


def score_by_layer(
    model: Any, asks: Sequence[Ask], reduce: Reduce, size: int = 8, step: Step = untold
) -> None:
    """Does what `builder.evaluate.worker.scoring.score` does, with the weights of one layer in memory.

    The model cannot be used afterwards. `step` is told how many of the layers are done.
    """
    gathers = [Gather(([0], [0]))]
    steps: list[Steps] = [deque()]
    install_gather(model, lambda: gathers[-1])
    for layer in list(listed_layers(model)):
        _note_calls(layer, steps)
    if (beginning := begin(model, asks)) is not None:
        beginning.run()
    made = batches(asks, size, positions_at_once(model))
    todo = [batch.without(len(beginning.tokens)) if beginning else batch for batch in made]
    outputs: deque[mx.array] = deque()
    for batch in todo:
        gathers.append(Gather(batch.positions))
        steps.append(deque())
        outputs.append(logits(model, gathers[-1], batch, beginning))
    del beginning
    _let_go(model)
    depth = max(map(len, steps))
    while any(steps):
        for of_batch in steps:
            if of_batch:
                mx.eval(of_batch.popleft())
        mx.clear_cache()
        step(depth - max(map(len, steps)), depth)
    for batch in todo:
        deliver(batch, outputs.popleft(), reduce)
        mx.clear_cache()


def _note_calls(layer: nn.Module, steps: Sequence[Steps]) -> None:
    """Notes each call of `layer` from now on, by giving the layer a subclass of its class."""
    kind: Any = type(layer)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not steps[-1]:
            steps[-1].append(_arrays([args, kwargs]))  # what the embedding made
        out = kind.__call__(self, *args, **kwargs)
        steps[-1].append(_arrays(out))
        return out

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _let_go(model: nn.Module) -> None:
    """Deletes the parameters from the model. Afterwards only the graph of the computation holds them."""
    for module in model.modules():
        for key in [key for key, value in module.items() if isinstance(value, mx.array)]:
            del module[key]


def _arrays(tree: Any) -> list[mx.array]:
    return [value for _, value in tree_flatten(tree) if isinstance(value, mx.array)]
