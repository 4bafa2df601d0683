"""A model at a point between its exact weights and its rounded ones, and what comes after its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from builder.engine.block import Block
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import layer_paths
from builder.engine.rounding.walk import Run, walk

_PLACES = 128  # of a sequence, whose logits are in memory at once
Weights = Mapping[str, mx.array]
Ran = tuple[nn.Module, mx.array]  # a model whose layers ran, and what the last of them returned


@dataclass(frozen=True)
class Opened:
    """A lazy model and its blocks. Each pass needs a new one, so that memory holds one layer."""

    model: nn.Module
    blocks: Mapping[str, Block]


@dataclass(frozen=True)
class Places:
    """Some places of one sequence where what is predicted counts: what follows the layers needs no others.

    `at`: their numbers. `counts`: 1 for each, float32 [1, places, 1]. One place alone gets another one beside
    it, with 0, so that a model can tell places from sequences.
    """

    at: list[int]
    counts: mx.array

    def of(self, array: mx.array) -> mx.array:
        """The part of an array [1, length, ...] at these places."""
        return array[:, mx.array(self.at)]


def places(counted: mx.array) -> list[Places]:
    """The places of a sequence that count, some at a time. counted: [length]."""
    numbered = np.flatnonzero(np.array(counted)).tolist()
    found = []
    for start in range(0, len(numbered), _PLACES):
        some = numbered[start : start + _PLACES]
        counts = [1.0] * len(some)
        if len(some) == 1 and counted.shape[0] > 1:
            some, counts = [*some, (some[0] + 1) % counted.shape[0]], [1.0, 0.0]
        found.append(Places(some, mx.array(counts)[None, :, None]))
    return found


def after_layers(model: Any, tokens: mx.array, hidden: mx.array) -> mx.array:
    """The logits that a model makes of what its layers returned, [sequences, length, vocabulary]."""
    left = [len(layer_paths(model))]

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        left[0] -= 1
        return hidden if left[0] == 0 else run.args[0]

    made: mx.array = walk(model, tokens, visit, settled=False)
    return made.astype(mx.float32)


def divergence(exact: Ran, other: Ran, tokens: mx.array, counted: mx.array, shelf: Shelf) -> float:
    """KL of the exact model to the other one: the mean over the tokens that count, in nats.

    `counted` [sequences, length] is 1 where what is predicted counts, else 0. `shelf` keeps what the last
    layers returned.
    """
    total = 0.0
    for at in range(tokens.shape[0]):
        some = slice(at, at + 1)
        parts = [(model, shelf.part(last, some)) for model, last in (exact, other)]
        for part in places(counted[at]):
            wanted, logs = (
                logprobs(after_layers(model, part.of(tokens[some]), part.of(hidden)))
                for model, hidden in parts
            )
            lost = (mx.exp(wanted) * (wanted - logs)).sum(-1) * part.counts[..., 0]
            total += numbers(lost.sum()[None])[0]
            mx.clear_cache()
    return total / numbers(counted.sum()[None])[0]


def logprobs(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, -1, keepdims=True)


def at_place(exact: Weights, moved: Weights, place: float) -> dict[str, mx.array]:
    return {**exact, **{name: exact[name] + place * moved[name] for name in moved}}


def at_places(exact: Weights, moved: Weights, names: Sequence[str], places: mx.array) -> dict[str, mx.array]:
    return {**exact, **{name: exact[name] + places[at] * moved[name] for at, name in enumerate(names)}}


def numbers(array: mx.array) -> list[float]:
    found: Any = array.tolist()
    return list(found)
