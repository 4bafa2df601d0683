"""Scores a mixture of experts on a CPU, layer by layer, and multiplies once for each expert.

mlx on a CPU multiplies by experts token by token. Here the code of the model runs for each batch until it
needs a product, and the tokens of all batches are multiplied together (`walk`). A first pass only builds the
graph of one batch. It tells which layers and experts are called, and how often. It fails where a model
computes in the middle of its forward pass: such a model is `Unsuited`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from threading import get_ident

import mlx.core as mx

from builder.engine.blas import mlx_on_one_thread, numpy_on_one_thread
from builder.engine.stored import cores
from builder.evaluate.process import Step, untold
from builder.evaluate.worker.lockstep import Turn
from builder.evaluate.worker.prefix import Beginning
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import Scorable
from builder.evaluate.worker.scoring import (
    Batch,
    Gather,
    Reduce,
    batches,
    begin,
    deliver,
    logits,
    positions_at_once,
)
from builder.evaluate.worker.walk import Walk

TOKENS = 4096  # of the batches that are multiplied together. More would only need more memory


def suits(scorable: Scorable) -> bool:
    """Whether the model has experts, and computes on a CPU."""
    has_experts = any(len(stored.shape) == 3 for stored in scorable.stored.values())
    return mx.default_device() == mx.Device(mx.cpu) and has_experts


def score_by_expert(
    scorable: Scorable, asks: Sequence[Ask], reduce: Reduce, size: int = 8, step: Step = untold
) -> None:
    """Does what `builder.evaluate.worker.scoring.score` does.

    The model cannot be used afterwards. `step` is told how many of the bytes of all weights are done. Raises
    Unsuited, before anything is given to `reduce`.
    """
    model, total, walk = scorable.model, sum(scorable.sizes.values()), Walk(scorable, step)
    positions = positions_at_once(model)
    made = list(batches(asks, size, positions))
    beginning = begin(model, asks)
    todo = [batch.without(len(beginning.tokens)) if beginning else batch for batch in made]
    gathers, streams = walk.gathers, cycle(_streams(get_ident(), min(cores(), len(todo))))

    def forward(batch: Batch, beginning: Beginning | None) -> Turn:
        def work(turn: Turn) -> mx.array:
            gather = gathers[turn] = Gather(batch.positions)
            return logits(model, gather, batch, beginning)  # type: ignore[no-any-return]

        return Turn(work, next(streams))

    step(0, total)
    with numpy_on_one_thread(), mlx_on_one_thread(), walk.watched():
        walk.learn(forward(made[0], None))
        gathers.clear()
        turns = {forward(batch, beginning): batch for batch in todo}
        first = [Turn(lambda turn: beginning.run())] if beginning else []

        def done(turn: Turn) -> None:
            if (batch := turns.pop(turn, None)) is not None:
                gathers.pop(turn)
                deliver(batch, turn.result, reduce)
                turn.result = None
                mx.clear_cache()

        walk.go([first, *_together(list(turns), todo, positions)], done)
    step(total, total)


@cache
def _streams(thread: int, number: int) -> list[mx.Stream]:
    """Streams of a thread, which are computed side by side. mlx keeps each until the process ends."""
    cpu = mx.Device(mx.cpu)
    return [mx.default_stream(cpu), *(mx.new_stream(cpu) for _ in range(number - 1))]


def _together(turns: Sequence[Turn], todo: Sequence[Batch], positions: int) -> Iterator[list[Turn]]:
    """The runs of batches with at most TOKENS tokens together, or of one batch.

    Nor have they more than twice `positions` to score, because their logits are in memory together.
    """
    group: list[Turn] = []
    tokens = scored = 0
    for turn, batch in zip(turns, todo, strict=True):
        more, asked = len(batch.tokens) * len(batch.tokens[0]), len(batch.positions[0])
        if group and (tokens + more > TOKENS or scored + asked > 2 * positions):
            yield group
            group, tokens, scored = [], 0, 0
        group.append(turn)
        tokens += more
        scored += asked
    if group:
        yield group
