"""Teacher-forced scoring: log-probs at chosen positions of many sequences, from one pass over each.

Sequences are sorted by length and run in batches. A sequence that is the beginning of another costs nothing.
The head is by far the widest matrix. So a gathering layer stands before the head and passes on the chosen
positions only. The model's own code does the rest (scaling, softcap), for any architecture. What all
sequences begin with is computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.evaluate.process import Step, untold
from builder.evaluate.worker.prefix import Beginning, shared_beginning
from builder.evaluate.worker.questions import Ask

Reduce = Callable[[int, mx.array], None]
TOKENS = 8192  # of a batch, so that long rows do not multiply the memory of a single row
LOGITS = 2**26  # of a batch: 256 MB in float32, and some copies


@dataclass(frozen=True)
class Batch:
    """Some sequences of similar length. `asks` holds (index of the ask, row in the batch, its positions)."""

    tokens: list[list[int]]
    asks: list[tuple[int, int, range]]

    @property
    def positions(self) -> tuple[list[int], list[int]]:
        """The rows and the places of all positions to score."""
        rows = [row for _, row, positions in self.asks for _ in positions]
        return rows, [position for _, _, positions in self.asks for position in positions]

    def without(self, beginning: int) -> Batch:
        """The batch without the first `beginning` tokens of each sequence. Positions count from the rest."""
        asks = [(index, row, range(p.start - beginning, p.stop - beginning)) for index, row, p in self.asks]
        return Batch([row[beginning:] for row in self.tokens], asks)


def batches(asks: Sequence[Ask], size: int, positions: int = sys.maxsize) -> Iterator[Batch]:
    """Batches of asks, sorted by length. An ask that is the beginning of another sequence shares its row.

    A batch has at most `size` sequences, TOKENS tokens and `positions` positions to score. A single sequence
    may be larger than that.
    """
    order = sorted(range(len(asks)), key=lambda i: asks[i].tokens, reverse=True)
    riders: list[list[int]] = []
    for index in order:  # in reverse order, a sequence comes right after the sequences that extend it
        last = asks[riders[-1][0]].tokens if riders else ()
        if riders and last[: len(asks[index].tokens)] == asks[index].tokens:
            riders[-1].append(index)
        else:
            riders.append([index])
    riders.sort(key=lambda group: len(asks[group[0]].tokens))
    for group in _groups(asks, riders, size, positions):
        width = len(asks[group[-1][0]].tokens) - 1
        tokens, wanted = [], []
        for row, members in enumerate(group):
            sequence = list(asks[members[0]].tokens[:-1])
            tokens.append(sequence + [sequence[-1]] * (width - len(sequence)))
            for index in members:
                ask = asks[index]
                wanted.append((index, row, range(ask.start - 1, len(ask.tokens) - 1)))
        yield Batch(tokens, wanted)


def _groups(
    asks: Sequence[Ask], riders: Sequence[Sequence[int]], size: int, positions: int
) -> Iterator[list[Sequence[int]]]:
    """Groups of neighbours in `riders`, which are sorted by length, within the limits of a batch."""
    group: list[Sequence[int]] = []
    scored = 0
    for members in riders:
        more = sum(len(asks[index].tokens) - asks[index].start for index in members)
        tokens = len(asks[members[0]].tokens) * (len(group) + 1)
        if group and (len(group) == size or tokens > TOKENS or scored + more > positions):
            yield group
            group, scored = [], 0
        group.append(members)
        scored += more
    if group:
        yield group


def positions_at_once(model: nn.Module) -> int:
    """How many positions to score at once, so that their logits are about LOGITS numbers."""
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    words = [module.weight.shape[0] for module in model.modules() if isinstance(module, kinds)]
    return max(1, LOGITS // max(words, default=2**18))


class Gather:
    """Picks the positions (rows, places) of a batch that the head must see. `called`: they were picked."""

    def __init__(self, positions: tuple[list[int], list[int]]) -> None:
        self.rows, self.places = positions
        self.called = False

    def __call__(self, hidden: Any) -> Any:
        """[rows, places, width] -> [1, positions, width]."""
        self.called = True
        return hidden[mx.array(self.rows), mx.array(self.places)][None]


class _Head(nn.Module):  # type: ignore[misc]
    """Replaces an output layer or a tied embedding. `current` gives the Gather of the batch that runs."""

    def __init__(self, inner: nn.Module, current: Callable[[], Gather]) -> None:
        super().__init__()
        self.inner = inner
        self._current = current

    def __call__(self, x: Any) -> Any:
        embeds = hasattr(self.inner, "as_linear")
        return self.inner(x) if embeds else self.inner(self._current()(x))

    def as_linear(self, x: Any) -> Any:
        return self.inner.as_linear(self._current()(x))

    @property
    def weight(self) -> Any:
        return self.inner.weight


def install_gather(model: nn.Module, current: Callable[[], Gather]) -> None:
    """Puts a gathering layer before every output layer and tied embedding. An earlier one is replaced."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if name == "lm_head" or (name == "embed_tokens" and hasattr(module, "as_linear")):
            inner = module.inner if isinstance(module, _Head) else module
            setattr(modules[parent], name, _Head(inner, current))


def score(model: Any, asks: Sequence[Ask], reduce: Reduce, size: int = 8, step: Step = untold) -> None:
    """Calls reduce(i, log-probs) for every ask i, in any order.

    The log-probs are float32 [positions, vocabulary]. At most `size` sequences are computed together. `step`
    is told how many of the asks are done.
    """
    done = 0
    running = [Gather(([0], [0]))]
    install_gather(model, lambda: running[-1])
    beginning = begin(model, asks)
    if beginning is not None:
        beginning.run()
        mx.eval(beginning.arrays)
    for batch in batches(asks, size, positions_at_once(model)):
        rest = batch.without(len(beginning.tokens)) if beginning else batch
        running[:] = [Gather(rest.positions)]
        deliver(rest, logits(model, running[-1], rest, beginning), reduce)
        mx.clear_cache()
        done += len(rest.asks)
        step(done, len(asks))


def begin(model: Any, asks: Sequence[Ask]) -> Beginning | None:
    """What all asks begin with, not run yet. None where sharing does not pay."""
    tokens = shared_beginning(model, asks)
    return Beginning(model, tokens) if tokens else None


def logits(model: Any, gather: Gather, batch: Batch, beginning: Beginning | None = None) -> Any:
    """The logits at the positions of a batch, float32 [positions, vocabulary], lazy.

    The batch continues `beginning`.
    """
    tokens = mx.array(batch.tokens)
    out = model(tokens, cache=beginning.caches(len(batch.tokens))) if beginning else model(tokens)
    if not gather.called:  # the architecture keeps its head elsewhere, so the head saw all positions
        out = gather(out)
    return out[0].astype(mx.float32)


def deliver(batch: Batch, out: mx.array, reduce: Reduce) -> None:
    """Calls reduce with the log-probs of each ask of a batch. `out` holds the logits of its positions."""
    out = out - mx.logsumexp(out, axis=-1, keepdims=True)
    mx.eval(out)
    at = 0
    for index, _, positions in batch.asks:
        reduce(index, out[at : at + len(positions)])
        at += len(positions)
