"""The forward passes of a model over several batches, which take turns (`lockstep`).

Each stops where it multiplies by a weight, and where a layer ends. When all passes of some batches have
stopped at the same weight, they are multiplied together (`builder.engine.experts`). When all passes have
left a layer, its weights are let go. The next weights are read meanwhile (`ahead`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.experts import by_expert, by_matrix, gated, given
from builder.engine.layers import OnCall, intercepted, listed_layers
from builder.engine.stored import Held, Stored
from builder.evaluate.process import Step
from builder.evaluate.worker.ahead import Ahead
from builder.evaluate.worker.lockstep import Turn
from builder.evaluate.worker.scorable import Scorable
from builder.evaluate.worker.scoring import Gather, install_gather


class Unsuited(Exception):
    """The model cannot be scored like this. Its weights may be lost."""


@dataclass(frozen=True)
class Multiply:
    """A run wants the product with a weight, or with the experts `indices` of a stack."""

    module: nn.Module
    x: mx.array
    indices: mx.array | None = None


@dataclass(frozen=True)
class Gate:
    """A run wants x · gate · sigmoid(gate)."""

    x: mx.array
    gate: mx.array


@dataclass(frozen=True)
class Leave:
    """A run has left a layer, which returned `arrays`."""

    layer: nn.Module
    arrays: list[mx.array]


class Walk:
    """All runs of one model, and the weights that are still needed. It takes them from `scorable`."""

    def __init__(self, scorable: Scorable, step: Step) -> None:
        self.gathers: dict[Turn, Gather] = {}
        self._model, self._step = scorable.model, step
        modules = dict(scorable.model.named_modules())
        self._layers = list(listed_layers(scorable.model))
        self._stored = {id(modules[path]): stored for path, stored in scorable.stored.items()}
        scorable.stored.clear()
        self._sizes = _sizes(modules, self._layers, scorable.sizes)
        self._total, self._done = sum(scorable.sizes.values()), 0
        self._called: tuple[list[nn.Module], list[nn.Module]] | None = [], []  # layers and weights, learning
        self._following: dict[int, int] = {}  # a stack of experts -> the one that is called next
        self._ahead = Ahead({})
        self._uses: Counter[int] = Counter()  # a weight -> how often a run calls it, then: all runs still do
        self._open: Counter[int] = Counter()  # a layer -> how often it is still to be called
        self._turn: Turn | None = None  # the run that has its turn
        install_gather(scorable.model, lambda: self.gathers.get(self._turn, _NOTHING))  # type: ignore[arg-type]

    # -- what happens in a run -------------------------------------------------------------------------------

    def watched(self) -> AbstractContextManager[None]:
        """The calls of layers and weights stop the run that has its turn, until the block ends."""
        from mlx_lm.models.switch_layers import SwiGLU

        handlers: list[tuple[nn.Module, dict[str, OnCall]]]
        handlers = [(layer, {"__call__": self._on_layer}) for layer in self._layers]
        for module in self._model.modules():
            if type(module) is SwiGLU:
                handlers.append((module, {"__call__": self._on_gate}))
            if (stored := self._stored.get(id(module))) is None:
                continue
            if len(stored.shape) == 3:
                handlers.append((module, {"__call__": self._on_stack}))
            elif isinstance(module, nn.Embedding):
                handlers.append((module, {"__call__": self._on_lookup, "as_linear": self._on_linear}))
            else:
                handlers.append((module, {"__call__": self._on_linear}))
        return intercepted(handlers)

    def _on_layer(self, layer: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._called is not None:
            self._called[0].append(layer)
            return forward(*args, **kwargs)
        out = forward(*args, **kwargs)
        self._ask(Leave(layer, [a for _, a in tree_flatten([out]) if isinstance(a, mx.array)]))
        return out

    def _on_stack(self, stack: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._called is not None:
            self._called[1].append(stack)
            return forward(*args, **kwargs)
        x, indices = given(*args, **kwargs)
        out = self._ask(Multiply(stack, x, indices))
        return out + mx.expand_dims(stack["bias"][indices], -2) if "bias" in stack else out

    def _on_linear(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._called is not None:
            self._called[1].append(module)
            return forward(*args, **kwargs)
        out = self._ask(Multiply(module, *args, **kwargs))
        return out + module["bias"] if "bias" in module else out

    def _on_gate(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        plain = len(args) == 2 and not kwargs and {each.dtype for each in args} == {mx.float32}
        if self._called is not None or not plain or args[0].shape != args[1].shape:
            return forward(*args, **kwargs)
        return self._ask(Gate(*args))

    def _on_lookup(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._called is not None:
            return forward(*args, **kwargs)
        return self._stored[id(module)].looked_up(*args, **kwargs)

    def _ask(self, what: Gate | Leave | Multiply) -> Any:
        assert self._turn is not None
        return self._turn.ask(what)

    # -- what happens between them -------------------------------------------------------------------------

    def learn(self, turn: Turn) -> None:
        """Learns from one forward pass, which is not computed, what is called. Raises Unsuited."""
        assert self._called is not None
        self._advance(turn, None)
        turn.result = None  # it holds all weights
        layers, called = self._called
        self._called = None
        self._open.update(map(id, layers))
        stacks = [id(each) for each in called if len(self._stored[id(each)].shape) == 3]
        self._following = dict(pairwise(stacks))
        self._ahead = Ahead({id(each): self._stored[id(each)] for each in called})
        self._uses.update(map(id, called))

    def go(self, groups: Sequence[Sequence[Turn]], done: Callable[[Turn], None]) -> None:
        """Lets all runs go on to their ends, and tells each that has ended.

        Raises Unsuited, before the first run has ended.
        """
        going, ended = [list(group) for group in groups if group], False
        for number in self._uses:
            self._uses[number] *= sum(map(len, going))
        try:
            with self._ahead:
                while any(going):
                    left = None
                    for group in going:
                        layer = self._to_end_of_layer(group)
                        left = left if layer is None else layer
                        for turn in [turn for turn in group if turn.done]:
                            group.remove(turn)
                            ended = True
                            done(turn)
                    if left is not None:
                        self._let_go(left)
        except Unsuited as error:
            if ended and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        finally:
            for turn in (turn for group in going for turn in group):
                turn.end()
        for module in self._model.modules():
            _empty(module)

    def _to_end_of_layer(self, group: Sequence[Turn]) -> nn.Module | None:
        """Lets some runs go on until all have left a layer, or have ended. Returns the layer."""
        answers: Mapping[Turn, Any] = {turn: None for turn in group if not turn.done}
        left = None
        while answers:
            wanted: dict[Turn, Multiply] = {}
            gates: dict[Turn, tuple[mx.array, mx.array]] = {}
            leaving: list[mx.array] = []
            for turn, answer in answers.items():
                asked = self._advance(turn, answer)
                if isinstance(asked, Multiply):
                    wanted[turn] = asked
                elif isinstance(asked, Gate):
                    gates[turn] = asked.x, asked.gate
                elif isinstance(asked, Leave):
                    leaving += asked.arrays
                    left = asked.layer
            mx.eval(leaving)
            answers = self._multiplied(wanted) | dict(zip(gates, gated(list(gates.values())), strict=True))
        return left

    def _advance(self, turn: Turn, answer: Any) -> Gate | Multiply | Leave | None:
        self._turn = turn
        try:
            return turn.advance(answer)  # type: ignore[no-any-return]
        except Exception as error:  # of a model's code, which may raise anything
            raise Unsuited(one_line(error)) from error

    def _multiplied(self, wanted: Mapping[Turn, Multiply]) -> dict[Turn, Any]:
        """What the runs want, by the weight that they want it from."""
        made: dict[Turn, Any] = {}
        for number in dict.fromkeys(id(each.module) for each in wanted.values()):
            stored = self._stored[number]
            held = self._read(number, stored)
            turns = [turn for turn, each in wanted.items() if id(each.module) == number]
            if len(stored.shape) == 3:
                calls = [(wanted[turn].x, wanted[turn].indices) for turn in turns]
                made |= zip(turns, by_expert(calls, stored, held), strict=True)  # type: ignore[arg-type]
            else:
                made |= zip(turns, by_matrix([wanted[turn].x for turn in turns], stored, held), strict=True)
            self._uses[number] -= len(turns)
            if self._uses[number] == 0 and held is not None:
                self._ahead.drop(number)
        return made

    def _read(self, number: int, stored: Stored) -> Held | None:
        """The matrices of a weight that we read. What mlx reads is read now, and the next one is begun."""
        held = None
        if number in self._ahead:
            held = self._ahead.take(number)
        else:
            mx.eval(stored.arrays)
        following = self._following.get(number, 0)
        if following not in self._ahead and (after := self._stored.get(following)) is not None:
            mx.async_eval(after.arrays)  # type: ignore[no-untyped-call]
        return held

    def _let_go(self, layer: nn.Module) -> None:
        """Lets the weights go that no later call needs. A layer may be called again, or share a module."""
        self._open[id(layer)] -= 1
        if self._open[id(layer)] > 0:
            return
        needed = {id(m) for each in self._layers if self._open[id(each)] > 0 for m in each.modules()}
        for module in layer.modules():
            if id(module) not in needed:
                self._stored.pop(id(module), None)
                if id(module) in self._ahead:
                    self._ahead.drop(id(module))
                _empty(module)
        mx.clear_cache()
        self._done += self._sizes[id(layer)]
        self._step(self._done, self._total)


_NOTHING = Gather(([0], [0]))  # of what all sequences begin with, no position is scored


def _empty(module: nn.Module) -> None:
    """Deletes the arrays of a module itself. Afterwards only the graph of the computation holds them."""
    for key in [key for key, value in module.items() if isinstance(value, mx.array)]:
        del module[key]


def _sizes(
    modules: Mapping[str, nn.Module], layers: Sequence[nn.Module], sizes: Mapping[str, int]
) -> dict[int, int]:
    """A layer -> the bytes of its weights as they are stored."""
    paths = {id(module): path for path, module in modules.items()}
    return {
        id(layer): sum(size for name, size in sizes.items() if name.startswith(f"{paths[id(layer)]}."))
        for layer in layers
    }
