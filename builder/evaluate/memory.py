"""How much memory it takes to measure a model layer by layer, told before it begins: an upper estimate."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod

from builder.console.words import size_text
from builder.plan.types import TargetPlan
from builder.project.peaks import LOOPS, RESIDENT
from builder.spec.types import Suite

_WORD = 2  # bytes of a text that make a token at least: a few tokens are shorter, most are longer
_LOGITS = 4 << 28  # of the positions that are scored together, and copies of them
_AT_ONCE = 8192  # tokens that run together at most (builder.evaluate.worker.scoring)
_WIDE = 16  # arrays as wide as a hidden state that a layer makes of each token


def layerwise_memory(target: TargetPlan, suites: Iterable[Suite], *, reference: bool) -> int:
    """Bytes of the process that measures a target, or its unquantized reference, layer by layer.

    A mixture of experts is multiplied by its weights as they are stored: those outside of the layers, of one
    layer, and of the next one. Any other model has one layer in float32 too, and all that is outside.
    """
    structure = target.base.structure
    stored = dict(structure.block_nbytes)
    if not reference:
        stored |= {action.block: action.size for action in target.actions}
    floats = {name: 4 * elements for name, elements in structure.block_elements.items()}
    layers = structure.layers
    stacks = [p.tensor.shape for p in structure.parameters if len(p.tensor.shape) == 3]
    outside = sum(stored[name] for name in stored if name not in layers)
    largest = max((stored[name] for name in layers), default=0)
    if stacks:
        wide = (os.cpu_count() or 1) * 4 * max(prod(shape[1:]) for shape in stacks)
    else:
        wide = sum(floats[name] for name in stored if name not in layers)
        wide += max((floats[name] for name in layers), default=0)
    states = 4 * structure.width * (2 * _tokens(suites) + _WIDE * _AT_ONCE)
    return RESIDENT + LOOPS + outside + 2 * largest + wide + states + _LOGITS


def told(name: str, nbytes: int) -> str:
    """What is said before a model is measured layer by layer."""
    return f"{name} is larger than memory in float32: layer by layer, with less than {size_text(nbytes)}"


def _tokens(suites: Iterable[Suite]) -> int:
    """More than the questions have. Templates add little to long texts, and candidates repeat questions."""
    files = {suite.data for suite in suites if suite.data is not None and suite.data.is_file()}
    return sum(file.stat().st_size for file in files) // _WORD
