"""Whether a checkpoint was loaded and saved by mlx-lm before: then its numbers may be changed already.

`sanitize` changes the numbers of some architectures. The norms of qwen3_next become 1 + weight, and weights
of falcon_h1 are multiplied by constants of the config. `sanitize` looks at names and shapes to find out
whether it did so before. An adapter of PEFT changes the numbers before that. On a checkpoint that holds the
numbers after it, the change would be wrong without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import mlx.core as mx

from builder.engine.sanitizing import Tensors
from builder.engine.tracing import Trace

_STACK = re.compile(r"(.*\.)(switch_mlp|switch_glu|experts)\.(\w+)\.weight")
_CONV = re.compile(r"conv\w*(\.conv)?\.weight$")


def changed_before(given: Mapping[str, mx.array], sanitize: Callable[[Tensors], Tensors]) -> frozenset[str]:
    """The parameters whose numbers mlx-lm would change if this were the original checkpoint, and does not.

    The original is guessed: convolutions and experts as torch has them. Nothing is evaluated.
    """
    found: set[str] = set()
    for original in _originals(given):
        trace = Trace()
        try:
            trace.around(sanitize, original)
        except Exception:  # a guess that the model's code does not take
            continue
        kept = given.keys() & trace.made.keys()
        trace.given = {name: array for name, array in trace.given.items() if name in kept}
        trace.made = {name: array for name, array in trace.made.items() if name in kept}
        found |= {name for name, origin in trace.origins().items() if origin.arithmetic}
    return frozenset(found)


def _originals(given: Mapping[str, mx.array]) -> Iterator[Tensors]:
    """Guesses of the checkpoint that `given` was made from. None, if nothing looks as mlx-lm leaves it."""
    convs = {n for n, a in given.items() if _CONV.search(n) and a.ndim == 3 and a.shape[-1] == 1 < a.shape[1]}
    if convs:
        yield dict(_unstacked({n: a.swapaxes(1, 2) if n in convs else a for n, a in given.items()}))
    if any(".mlp.switch_mlp." in name for name in given):
        yield {name.replace(".mlp.switch_mlp.", ".moe."): a.astype(a.dtype) for name, a in given.items()}


def _unstacked(tensors: Tensors) -> Iterator[tuple[str, mx.array]]:
    """Stacks of experts as one tensor for each. All are the first one: only the names matter here."""
    for name, array in tensors.items():
        match = _STACK.fullmatch(name) if array.ndim == 3 else None
        if match is None:
            yield name, array.astype(array.dtype)
            continue
        first = array[0]
        for number in range(array.shape[0]):
            yield f"{match[1]}experts.{number}.{match[3]}.weight", first
