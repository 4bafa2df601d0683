"""What is done to the tensors of a checkpoint around the `sanitize` that mlx-lm calls in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.engine.checkpoint import Reading, in_numbers

Tensors = dict[str, mx.array]
# What is called in place of a model's `sanitize`: with that, and with the tensors of the checkpoint by name.
Around = Callable[[Callable[[Tensors], Tensors], Tensors], Tensors]


def inside(model_class: Any, around: Around) -> Any:
    """The class of a model whose `sanitize` is `around` the model's own."""

    class Around(model_class):  # type: ignore[misc]
        def sanitize(self, weights: Tensors) -> Tensors:
            return around(getattr(super(), "sanitize", dict), weights)

    return Around


def with_numbers(model_class: Any, reading: Reading) -> Callable[[Any], nn.Module]:
    """Makes the model, with a `sanitize` that knows the FP8 weights of this checkpoint."""

    def make(arguments: Any) -> nn.Module:
        model: nn.Module = model_class(arguments)
        model.sanitize = in_numbers(reading, getattr(model, "sanitize", None))
        return model

    return make
