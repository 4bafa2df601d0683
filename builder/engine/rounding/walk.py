"""Runs a model over many sequences, one layer after the other, with the model's own code.

The model's own forward code runs once for all sequences together. Where it calls a layer, a visitor is called
instead. The visitor may run the layer, change its weights, and run it again, over a few sequences at a time.
What it returns goes on to the next layer. So any architecture whose layers stand in a list works, with the
weights of one layer and the hidden states of all sequences in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

TOKENS = 1024  # that a layer takes at a time. Fixed, so that the number of cores does not change a bit


@dataclass
class Run:
    """One call of a layer, for all sequences. Calling it returns what the layer returns."""

    forward: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    sequences: int
    size: int  # sequences in a piece
    streams: Sequence[Any]

    def __call__(self, also: Callable[[], list[mx.array]] = list) -> Any:
        """`also` gives more arrays to compute with each piece."""
        made: list[Any] = []
        pieces = list(self.pieces())
        for first in range(0, len(pieces), len(self.streams)):
            for stream, (args, kwargs) in zip(self.streams, pieces[first:], strict=False):
                with mx.stream(stream):
                    made.append(self.forward(*args, **kwargs))
            mx.eval(made[first:], also())
            mx.clear_cache()
        return _joined(made)

    def pieces(self) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """The arguments for some sequences at a time."""
        for start in range(0, self.sequences, self.size):
            args, kwargs = _part(
                [list(self.args), dict(self.kwargs)], self.sequences, slice(start, start + self.size)
            )
            yield args, kwargs


Visit = Callable[[str, Any, Run], Any]  # path of a layer, the layer, what runs it -> what it returns


def walk(model: Any, tokens: mx.array, visit: Visit, *, settled: bool = True) -> Any:
    """Calls the model with tokens [sequences, length], and `visit` for each layer that it calls.

    Returns what the model returned, lazy. `settled`: what a layer is given is computed before its visit.
    """
    sequences, length = tokens.shape
    size = max(1, TOKENS // length)
    streams = _streams()

    def on_call(path: str, layer: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if settled:
            mx.eval([array for _, array in tree_flatten([args, kwargs]) if isinstance(array, mx.array)])

        run = Run(forward, args, kwargs, sequences, size, streams)
        return visit(path, layer, run)

    with _watched(model, on_call):
        return model(tokens)


def _streams() -> list[Any]:
    """One stream for each core of a CPU: mlx computes the pieces of different streams side by side."""
    if mx.default_device() != mx.Device(mx.cpu):
        return [mx.default_stream(mx.default_device())]
    return [mx.new_stream(mx.Device(mx.cpu)) for _ in range(os.cpu_count() or 1)]


def listed_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists of a tree of modules. These are the layers of the model."""
    for child in module.children().values():
        if isinstance(child, nn.Module):
            yield from listed_layers(child)
        elif isinstance(child, list):
            yield from (entry for entry in child if isinstance(entry, nn.Module))


@contextmanager
def _watched(model: Any, on_call: Callable[..., Any]) -> Iterator[None]:
    """Gives each layer a subclass of its class, whose calls go through `on_call`."""
    paths = {id(module): path for path, module in model.named_modules()}
    former = [(layer, type(layer)) for layer in listed_layers(model)]
    try:
        for layer, kind in former:
            layer.__class__ = _watching(kind, paths[id(layer)], on_call)
        yield
    finally:
        for layer, kind in former:
            layer.__class__ = kind


def _watching(kind: Any, path: str, on_call: Callable[..., Any]) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return on_call(path, self, lambda *a, **k: kind.__call__(self, *a, **k), args, kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})


def _part(tree: Any, sequences: int, some: slice) -> Any:
    """The arrays of a tree for some of the sequences. Arrays of another length are for all of them."""
    return tree_map(
        lambda leaf: (
            leaf[some]
            if isinstance(leaf, mx.array) and leaf.ndim > 1 and leaf.shape[0] == sequences
            else leaf
        ),
        tree,
    )


def _joined(made: list[Any]) -> Any:
    first = made[0]
    if isinstance(first, mx.array):
        return mx.concatenate(made) if first.ndim > 1 else first
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(parts)) for parts in zip(*made, strict=True))
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in made]) for key in first}
    return first
