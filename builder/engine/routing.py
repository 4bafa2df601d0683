"""Measures what each expert of a model does for a text: how often it is chosen, and how much it adds.

The text goes through the model layer by layer, with the weights of one layer in memory. A layer's stack of
experts is watched: which experts each token is given to, and the norm of what each of them returns. The
router's weight of an expert is the derivative of what the mixture returns, by what the expert returns. So no
architecture's router has to be known. Where a projection follows the sum over experts, the derivative is
taken of that projection's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from builder.engine.block import Block
from builder.engine.expert_places import NotPrunable, Places
from builder.engine.layers import OnCall, intercepted
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import empty, layer_paths, put
from builder.engine.rounding.walk import Run, walk
from builder.weights.experts import Experts, Routing

_UNIFORM = 1e-3  # how far the derivatives by one expert's numbers may differ, relative to the largest
Step = Callable[[int, int], None]


def measure(
    model: nn.Module,
    blocks: Mapping[str, Block],
    places: Places,
    tokens: mx.array,
    kind: str,
    step: Step,
    shelf: Shelf | None = None,
) -> Routing:
    """Runs the tokens [sequences, length] through the model, which cannot be used afterwards.

    kind: the model type, for errors. step: is told how many of the layers are done. `shelf` keeps the hidden
    states. Raises NotPrunable, EngineError.
    """
    layers = layer_paths(model)
    for name, block in blocks.items():
        if name not in layers:
            put(model, "", floats(block))
    watched = {block: _Watched(places.count, kind) for block in places.stacks}
    modules = dict(model.named_modules())
    done = 0

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        nonlocal done
        if (block := blocks.get(path)) is None:  # a layer without parameters
            return run()
        put(layer, path, floats(block))
        watch = watched.get(path)
        made = watch.run(run, modules, places.stacks[path]) if watch else run()
        empty(layer)
        block.forget()
        done += 1
        step(done, len(layers))
        return made

    walk(model, tokens, visit, shelf=shelf)
    unseen = [block for block, watch in watched.items() if not watch.top_k]
    if unseen:
        raise NotPrunable(model_type=kind, what=f'the text does not reach the experts of "{unseen[0]}"')
    return Routing(
        places.setting,
        places.count,
        max(watch.top_k for watch in watched.values()),
        places.groups,
        places.open_groups,
        dict(sorted(places.axes.items())),
        {block: watch.found() for block, watch in watched.items()},
        int(tokens.size),
    )


def floats(block: Block) -> dict[str, mx.array]:
    """The fused weights of a block in float32, lazy. Stacks of experts stay as they are on a CPU."""
    from mlx_lm.models.switch_layers import SwitchLinear

    values = block.values(None)
    stacks = {f"{p}.weight" for p, m in block.modules.items() if type(m) is SwitchLinear and _on_cpu()}
    found = {}
    for name in values:
        array = values.array(name)
        is_float = mx.issubdtype(array.dtype, mx.floating)
        found[name] = array.astype(mx.float32) if is_float and name not in stacks else array
    return found


def _on_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))


@dataclass
class _Watched:
    """What is seen of one layer's experts, in sums."""

    count: int
    kind: str
    top_k: int = 0
    _instead: mx.array | None = None  # what the stack returns without computing
    _seen: list[tuple[mx.array, mx.array]] = field(default_factory=list)  # indices, and what experts returned
    _given: list[mx.array] | None = None  # what modules behind the stack are given
    _sums: npt.NDArray[np.float64] | None = None

    def run(self, run: Run, modules: Mapping[str, nn.Module], stack: str) -> Any:
        around = modules[stack.rpartition(".")[0]]
        handlers: list[tuple[nn.Module, dict[str, OnCall]]] = [
            (modules[stack], {"__call__": self._on_stack}),
            (around, {"__call__": self._on_mixture}),
        ]
        inside = [
            m for m in around.children().values() if isinstance(m, nn.Module) and m is not modules[stack]
        ]
        handlers += [(module, {"__call__": self._on_other}) for module in inside]
        with intercepted(handlers):
            return run()

    def found(self) -> Experts:
        assert self._sums is not None
        chosen, norms, weighted = self._sums.tolist()
        return Experts(tuple(map(int, chosen)), tuple(norms), tuple(weighted))

    # -- what happens in a forward pass ----------------------------------------------------------------------

    def _on_stack(self, stack: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._instead is not None:
            if self._given is not None:
                self._given.clear()  # what was given before the stack does not follow from it
            return self._instead
        made = forward(*args, **kwargs)
        indices = args[1] if len(args) > 1 else kwargs["indices"]
        self._seen.append((indices, made))
        return made

    def _on_other(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._given is not None:
            self._given += [each for each in args if isinstance(each, mx.array)]
        return forward(*args, **kwargs)

    def _on_mixture(self, mixture: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._seen.clear()
        made = forward(*args, **kwargs)
        if len(self._seen) != 1:
            raise NotPrunable(
                model_type=self.kind, what="its code does not call the experts once for a layer"
            )
        indices, returned = self._seen.pop()
        weights = self._weights(forward, args, kwargs, returned)
        norms = mx.sqrt(mx.square(returned.astype(mx.float32)).sum(-1))
        mx.eval([made], indices, weights, norms)
        self._add(indices, weights, norms)
        return made

    def _weights(self, forward: Callable[..., Any], args: Any, kwargs: Any, returned: mx.array) -> mx.array:
        """The router's weight of each expert that a token is given to, in the shape of the indices."""

        def mixed(behind: bool) -> Callable[[mx.array], list[mx.array]]:
            def call(instead: mx.array) -> list[mx.array]:
                self._instead, self._given = instead, [] if behind else None
                try:
                    out = forward(*args, **kwargs)
                    return self._given or [] if behind else [_first(out)]
                finally:
                    self._instead = self._given = None

            return call

        for behind in (False, True):
            for at in range(1 if not behind else len(mixed(behind)(returned))):
                _, (slope,) = mx.vjp(
                    lambda y, at=at, behind=behind: [mixed(behind)(y)[at].astype(mx.float32).sum()],
                    [returned],
                    [mx.array(1.0)],
                )
                spread, largest = mx.abs(slope - slope[..., :1]).max(), mx.abs(slope).max()
                if mx.logical_and(largest > 0, spread <= _UNIFORM * largest).item():
                    weights: mx.array = mx.abs(slope[..., 0]).astype(mx.float32)
                    return weights
        what = "its code does not add up the experts with one weight for each"
        raise NotPrunable(model_type=self.kind, what=what)

    def _add(self, indices: mx.array, weights: mx.array, norms: mx.array) -> None:
        """A weight of zero is of an expert that was not meant (longcat's identity experts)."""
        numbers = np.array(indices).reshape(-1)
        weight, norm = (np.array(each, dtype=np.float64).reshape(-1) for each in (weights, norms))
        meant = weight != 0
        each = (meant.astype(np.float64), norm * meant, norm * weight)
        new = np.stack([np.bincount(numbers, some, self.count) for some in each]).astype(np.float64)
        self._sums = new if self._sums is None else self._sums + new
        self.top_k = indices.shape[-1]


def _first(out: Any) -> mx.array:
    """The first array that a module returns."""
    return next(array for _, array in tree_flatten([out]) if isinstance(array, mx.array))
