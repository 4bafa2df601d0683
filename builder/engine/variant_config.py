"""config.json of a variant, as mlx-lm makes it while it quantizes a whole model."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.inspect import as_quantization
from builder.errors import BuildError
from builder.spec.types import Quantization, Variant
from builder.weights.overrides import deciding


class LayoutChanged(BuildError):
    """{target}: mlx-lm now lays out this model in another way than when the base was inspected: {what}"""

    exit_code = 2
    hint = "mlx-lm was upgraded: run `doit -a base:<name>` to inspect the base again."


class Unquantizable(BuildError):
    """{target}: mlx-lm cannot quantize this model: {what}"""

    exit_code = 2
    hint = "mlx-lm does not support these settings for this model type. Declare other settings."


def clone(model: nn.Module) -> nn.Module:
    """A structural copy of a module tree that shares every array."""
    shared = {id(array): array for _, array in tree_flatten(model) if isinstance(array, mx.array)}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, mx.array):
                shared[id(value)] = value
    return copy.deepcopy(model, shared)


def config_of(
    model: nn.Module, config: dict[str, Any], variant: Variant, planned: Mapping[str, Quantization]
) -> dict[str, Any]:
    """config.json of a variant as mlx_lm.utils.quantize_model makes it. `planned`: what the plan quantizes.

    Raises Unquantizable, and LayoutChanged if mlx-lm decides otherwise than the plan.
    """
    if not variant.is_quantized:
        return copy.deepcopy(config)
    from mlx_lm.utils import quantize_model

    default = variant.quantization
    seen: dict[str, Quantization] = {}
    predicate = _predicate(model, variant, seen)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # quantize_model prints bits per weight
            _, made = quantize_model(
                clone(model),
                config,
                variant.common_group,
                default.bits if default else None,
                mode=default.mode if default else "affine",
                quant_predicate=predicate,
            )
    except Exception as error:  # the model's own to_quantized may raise anything
        raise Unquantizable(target=variant.name, what=one_line(error)) from error
    if seen != planned:
        odd = sorted(set(seen.items()) ^ set(planned.items()), key=str)[0][0]
        raise LayoutChanged(target=variant.name, what=f'quantization of "{odd}"')
    return dict(made)


def _predicate(
    model: nn.Module, variant: Variant, seen: dict[str, Quantization]
) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    """A predicate for mlx-lm: overrides decide first, then the recipe or the model's own quant_predicate.

    The predicate notes each decision in `seen`.
    """
    from mlx_lm.convert import mixed_quant_predicate_builder

    inner: Any
    if variant.recipe:
        inner = mixed_quant_predicate_builder(variant.recipe, model, variant.group_size)
    else:
        inner = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def decide(path: str, module: nn.Module) -> bool | dict[str, Any]:
        override = deciding(variant, path)
        if override is None:
            answer = inner(path, module)
        elif override.quantization is None:
            answer = False
        else:
            how = override.quantization
            answer = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
        value = as_quantization(answer)
        if isinstance(value, Quantization):
            seen[path] = value
        elif value and variant.quantization is not None:
            seen[path] = variant.quantization
        return answer  # type: ignore[no-any-return]

    return decide
