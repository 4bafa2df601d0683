"""Multiplies by the experts of a layer once for each expert, while the layer runs for a text on a CPU.

mlx on a CPU multiplies by experts token by token, and reads the weight of an expert for each of its tokens.
So the model's code stops at each stack of experts, and all tokens of a piece are multiplied together
(`builder.engine.experts`). Nothing can be differentiated then: gradients take the plain way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.engine.experts import by_expert, given
from builder.engine.layers import intercepted
from builder.engine.stored import Stored


def experts_together(layer: nn.Module | None) -> AbstractContextManager[None]:
    """Until the block ends, the stacks of experts in a layer multiply by expert. They hold floats."""
    from mlx_lm.models.switch_layers import SwitchLinear

    if layer is None or mx.default_device() != mx.Device(mx.cpu):
        return nullcontext()
    stacks = [module for module in layer.modules() if isinstance(module, SwitchLinear)]
    return intercepted((stack, {"__call__": _product}) for stack in stacks) if stacks else nullcontext()


def _product(stack: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    plain = forward(*args, **kwargs)  # not computed, but whoever watches the inputs is told
    x, indices = given(*args, **kwargs)
    try:
        (made,) = by_expert([(x, indices)], Stored(stack.weight))
    except ValueError:  # a model that compiles or differentiates this part of itself
        return plain
    return made + mx.expand_dims(stack["bias"][indices], -2) if "bias" in stack else made
