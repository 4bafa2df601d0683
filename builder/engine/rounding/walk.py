"""Runs a model over many sequences, one layer after the other, with the model's own code.

The model's own forward code runs once for all sequences together. Where it calls a layer, a visitor is called
instead. The visitor may run the layer, change its weights, and run it again, over a few sequences at a time.
What it returns goes on to the next layer. So any architecture whose layers stand in a list works, with the
weights of one layer and the hidden states of all sequences in memory.

What a layer is given is cut along the first dimension that is as long as there are sequences, or the second.
So there must not be as many sequences as tokens in each: a mask [length, length] would be cut too. A layer
that is given a state to change cannot be run twice, and is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from builder.console.words import one_line
from builder.engine.layers import intercepted, listed_layers
from builder.engine.rounding.grouped import experts_together
from builder.engine.rounding.shelf import Growing, Shelf
from builder.errors import BuildError, EngineError

Given = TypeVar("Given")
Made = TypeVar("Made")

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
    path: str = "a layer"
    layer: nn.Module | None = None
    shelf: Shelf = field(default_factory=Shelf)

    def __call__(self, also: Callable[[], list[mx.array]] = list) -> Any:
        """What the layer returns. `also` gives more to compute with each piece. Raises EngineError."""
        made: list[Any] = []
        stored: Growing | None = None
        with self._explained(), ExitStack() as open_now:
            for some in self._computed():
                mx.eval(some, also())
                mx.clear_cache()
                if not made and stored is None and (shape := self._too_large(some[0])) is not None:
                    stored = open_now.enter_context(self.shelf.grow(shape))
                if stored is not None:
                    stored.add(some)
                else:
                    made += some
            if stored is not None:
                return stored.done()
            whole = made[0] if len(made) == 1 else _joined(made, self.size, self._axis)
            for array in {id(leaf): leaf for _, leaf in tree_flatten([whole]) if _is_array(leaf)}.values():
                self.shelf.note(array)
            return whole

    def _too_large(self, piece: Any) -> tuple[int, ...] | None:
        """The shape of what the layer returns, where that is one array which must go to the disk."""
        if self.sequences <= self.size or not _is_array(piece) or piece.ndim < 2:
            return None
        if piece.dtype != mx.float32 or self._axis != 0 or piece.shape[0] != self.size:
            return None
        shape = (self.sequences, *piece.shape[1:])
        return None if self.shelf.room_for(piece, self.sequences) else shape

    def watch(self, also: Callable[[], list[mx.array]]) -> None:
        """Computes what `also` gives after each piece, and nothing else. Raises EngineError."""
        with self._explained():
            for some in self._computed():
                some.clear()
                mx.eval(also())
                mx.clear_cache()

    def _computed(self) -> Iterator[list[Any]]:
        """What the layer returns for the next pieces, one for each stream, lazy."""
        pieces = self.pieces()
        while some := [
            self._lazy(stream, args, kwargs)
            for stream, (args, kwargs) in zip(self.streams, pieces, strict=False)
        ]:
            yield some

    def _lazy(self, stream: Any, args: Any, kwargs: Any) -> Any:
        with mx.stream(stream), experts_together(self.layer):
            return self.forward(*args, **kwargs)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises EngineError for what the code of a model raises."""
        try:
            yield
        except (BuildError, OSError):  # OSError: of the shelf
            raise
        except Exception as error:  # it may raise anything
            raise _not_run(self.path, one_line(error)) from error

    @property
    def _axis(self) -> int:
        """Along which dimension the first array is cut that a layer is given."""
        arrays = (leaf for _, leaf in tree_flatten([list(self.args), dict(self.kwargs)]) if _is_array(leaf))
        return next((axis for array in arrays if (axis := _cut(array, self.sequences)) is not None), 0)

    def pieces(self) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """The arguments for some sequences at a time."""
        if self.sequences <= self.size:
            yield list(self.args), dict(self.kwargs)
            return
        for start in range(0, self.sequences, self.size):
            args, kwargs = _part(
                [list(self.args), dict(self.kwargs)],
                self.sequences,
                slice(start, start + self.size),
                self.shelf,
            )
            yield args, kwargs


Visit = Callable[[str, Any, Run], Any]  # path of a layer, the layer, what runs it -> what it returns


def walk(
    model: Any, tokens: mx.array, visit: Visit, *, settled: bool = True, shelf: Shelf | None = None
) -> Any:
    """Calls the model with tokens [sequences, length], and `visit` for each layer that it calls.

    Returns what the model returned, lazy. `settled`: what a layer is given is computed before its visit.
    `shelf` keeps what layers return. Raises EngineError for a model that cannot be run like this.
    """
    kept = shelf or Shelf()
    sequences, length = tokens.shape
    size = max(1, TOKENS // length)
    raised: list[BaseException] = []
    if sequences == length and sequences > size:
        raise _not_run("the text", f"{sequences} sequences of {length} tokens cannot be told apart")

    def on_call(path: str, layer: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if settled:
            given = (leaf for _, leaf in tree_flatten([args, kwargs]) if _is_array(leaf))
            mx.eval([array for array in given if not kept.holds(array)])

        _check_stateless(path, [list(args), dict(kwargs)])
        run = Run(forward, args, kwargs, sequences, size, streams(), path, layer, kept)
        try:
            return visit(path, layer, run)
        except BaseException as error:
            raised.append(error)
            raise

    with _watched(model, on_call):
        try:
            return model(tokens)
        except Exception as error:  # code of a model, which may raise anything
            if isinstance(error, BuildError) or error in raised:
                raise
            raise _not_run("the model", one_line(error)) from error


def _not_run(where: str, what: str) -> EngineError:
    return EngineError(
        target=where,
        what=f"mlx-lm cannot run this model for a calibration text ({what})",
        hint="Remove `calibration`, or choose another number of `samples`.",
    )


def _check_stateless(path: str, given: Any) -> None:
    """Raises EngineError for a layer that is given a cache: running it twice would change its results."""
    plain = (mx.array, str, int, float, type(None), mx.Dtype)
    for _, leaf in tree_flatten(given):
        if not isinstance(leaf, plain):
            raise _not_run(path, f"it is given a {type(leaf).__name__}, which it changes")


_LOCAL = threading.local()  # streams of mlx belong to one thread


def streams() -> list[Any]:
    """One stream for each core of a CPU: mlx computes the pieces of different streams side by side."""
    if mx.default_device() != mx.Device(mx.cpu):
        return [mx.default_stream(mx.default_device())]
    made: list[Any] = _LOCAL.__dict__.setdefault("streams", [])
    while len(made) < (os.cpu_count() or 1):
        made.append(mx.new_stream(mx.Device(mx.cpu)))
    return made[: os.cpu_count() or 1]


def side_by_side(work: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
    """What `work` gives for each item, computed: some items at a time, each on a stream of its own."""
    left, found = iter(items), list[Made]()
    while True:
        some = []
        for stream, item in zip(streams(), left, strict=False):
            with mx.stream(stream):
                some.append(work(item))
        if not some:
            return found
        mx.eval(some)
        mx.clear_cache()
        found += some


def _watched(model: Any, on_call: Callable[..., Any]) -> AbstractContextManager[None]:
    """The calls of each layer go through `on_call`, which is also told the layer's path."""
    paths = {id(module): path for path, module in model.named_modules()}
    return intercepted(
        (layer, {"__call__": partial(on_call, paths[id(layer)])}) for layer in listed_layers(model)
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, mx.array)


def _cut(array: mx.array, sequences: int) -> int | None:
    """The dimension of an array that counts sequences, or None where the array is for all of them.

    Raises EngineError where that cannot be told.
    """
    found = [axis for axis, size in enumerate(array.shape[:2]) if size == sequences and array.ndim > 1]
    if len(found) > 1 and array.ndim > 2:
        raise _not_run("a layer", f"it is given an array {array.shape} for {sequences} sequences")
    return found[0] if found else None


def _part(tree: Any, sequences: int, some: slice, shelf: Shelf) -> Any:
    """The arrays of a tree for some of the sequences."""

    def part(leaf: Any) -> Any:
        axis = _cut(leaf, sequences) if _is_array(leaf) else None
        return leaf if axis is None else shelf.part(leaf, some) if axis == 0 else leaf[:, some]

    return tree_map(part, tree)


def _joined(made: list[Any], size: int, axis: int) -> Any:
    """What a layer returned for the pieces, as one. `axis`: the dimension along which it was cut."""
    first = made[0]
    if isinstance(first, mx.array):
        if first.ndim < 2:
            return first
        sizes = [at for at in (axis, 0, 1) if first.shape[at] == size]
        return mx.concatenate(made, sizes[0]) if sizes else first
    if isinstance(first, tuple | list):
        parts = [_joined(list(each), size, axis) for each in zip(*made, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in made], size, axis) for key in first}
    return first
