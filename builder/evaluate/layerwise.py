"""Scoring a model larger than memory: one layer's weights at a time, whatever the architecture.

Every batch runs the model's own code in a thread of its own and stops before each entry of the model's list
of layers. When all batches stand before a layer, its weights are read, each batch passes through it in turn,
and the weights are let go. One thread runs at a time, and each evaluates what it computes: mlx's streams
belong to a thread. Hidden states of all batches are in memory, and the weights of one layer, the embedding
and the head.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from builder.evaluate.questions import Ask
from builder.evaluate.scoring import Batch, Gather, Reduce, batches, deliver, install_gather, logits


class _Turns:
    """Hands the one right to run to and fro between the leader and the batches."""

    def __init__(self, count: int) -> None:
        self.ready = [threading.Semaphore(0) for _ in range(count)]
        self.back = threading.Semaphore(0)
        self.failed: BaseException | None = None
        self.mine = threading.local()

    def pause(self) -> None:
        """In a batch: let the leader go on, wait for the next turn."""
        self.back.release()
        self.ready[self.mine.number].acquire()
        if self.failed is not None:
            raise Stopped

    def run(self, number: int) -> None:
        """In the leader: one turn of a batch."""
        self.ready[number].release()
        self.back.acquire()
        if self.failed is not None:
            raise self.failed


class Stopped(Exception):
    """Another batch failed: end quietly."""


class _Layer(nn.Module):  # type: ignore[misc]
    """Stands for a layer in the model's list; pauses before it."""

    def __init__(self, inner: nn.Module, turns: _Turns) -> None:
        super().__init__()
        self.inner = inner
        self._turns = turns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mx.eval([value for value in (*args, *kwargs.values()) if isinstance(value, mx.array)])
        self._turns.pause()
        out = self.inner(*args, **kwargs)
        mx.eval(out)
        return out

    def __getattr__(self, key: str) -> Any:
        """Models ask their layers what they are (use_sliding, is_linear)."""
        try:
            return super().__getattr__(key)
        except AttributeError:
            return getattr(super().__getattr__("inner"), key)


def score_by_layer(model: Any, asks: Sequence[Ask], reduce: Reduce, size: int = 8) -> None:
    """As scoring.score, with one layer's weights in memory at a time. The model is used up."""
    todo = list(batches(asks, size))
    gathers = [Gather(batch.positions) for batch in todo]
    turns = _Turns(len(todo))
    install_gather(model, lambda: gathers[turns.mine.number])
    wrapped = _wrap_layers(model, turns)
    _evaluate_rest(model, wrapped)
    done: dict[int, Any] = {}
    threads = [
        threading.Thread(
            target=_batch, args=(model, turns, number, batch, gathers[number], done), daemon=True
        )
        for number, batch in enumerate(todo)
    ]
    try:
        for number, thread in enumerate(threads):
            thread.start()
            turns.run(number)
        for layer in wrapped:
            mx.eval(_arrays(layer))
            for number in range(len(threads)):
                turns.run(number)
                if number in done:
                    deliver(todo[number], done.pop(number), reduce)
            layer.inner.update(tree_map(lambda _: mx.zeros(0), layer.inner.parameters()))
            mx.clear_cache()
    except BaseException as error:
        turns.failed = turns.failed or error
        for ready in turns.ready:
            ready.release()
        raise


def _wrap_layers(model: Any, turns: _Turns) -> list[_Layer]:
    """Puts a _Layer in the place of each entry of model.layers, in whatever list the model keeps them."""
    wrapped = {id(layer): _Layer(layer, turns) for layer in model.layers}
    for _, module in model.named_modules():
        for value in module.values():
            if isinstance(value, list) and any(id(entry) in wrapped for entry in value):
                value[:] = [wrapped.get(id(entry), entry) for entry in value]
    return list(wrapped.values())


def _evaluate_rest(model: Any, layers: Sequence[Any]) -> None:
    """Embedding, norms, head: what no layer of the list holds."""
    held = {id(value) for layer in layers for value in _arrays(layer)}
    mx.eval([value for value in _arrays(model) if id(value) not in held])


def _arrays(module: Any) -> list[mx.array]:
    """Parameters, and constants that a module computed for itself."""
    found = [value for _, value in tree_flatten(module.parameters())]
    for _, inner in module.named_modules():
        found += [value for value in inner.values() if isinstance(value, mx.array)]
    return found


def _batch(
    model: Any, turns: _Turns, number: int, batch: Batch, gather: Gather, done: dict[int, Any]
) -> None:
    """One batch from beginning to end; each turn ends at a pause or here, with its logits in `done`."""
    turns.mine.number = number
    turns.ready[number].acquire()
    try:
        if turns.failed is None:
            done[number] = logits(model, gather, batch)
    except Stopped:
        return
    except BaseException as error:
        turns.failed = error
    turns.back.release()
