"""What variants do to the weights of a block, and where the compiled kernels do exactly that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from builder.engine.fusing import DTYPES
from builder.engine.kernels import agreement
from builder.engine.kernels.cpu import Setting
from builder.spec.types import Quantization

Places = Mapping[str, Mapping[str, int]]  # variant -> tensor -> the byte of its file where it will begin
NOWHERE: Places = {}


@dataclass(frozen=True)
class Recipe:
    """What one variant does to a block: cast to `dtype` (None: keep), and quantize the paths given."""

    dtype: mx.Dtype | None
    quantization: Mapping[str, Quantization]


def is_plain(module: nn.Module) -> bool:
    """Whether `to_quantized` of this module does nothing but mx.quantize of its weight."""
    from mlx_lm.models.switch_layers import SwitchLinear

    return type(module) in (nn.Linear, nn.Embedding, SwitchLinear)


def exact(
    path: str, module: nn.Module, dtype: mx.Dtype, recipes: Mapping[str, Recipe]
) -> dict[str, Quantization]:
    """How each variant quantizes a weight of `dtype`, for those where the kernels do what mlx does."""
    if not is_plain(module):
        return {}
    agreed = agreement.verify(DTYPES[dtype]) if dtype in DTYPES else frozenset()
    return {
        variant: how
        for variant, recipe in recipes.items()
        if (how := recipe.quantization.get(path)) is not None
        and how.mode == "affine"
        and (how.bits, how.group_size) in agreed
    }


def begins(name: str, wanted: Mapping[str, Quantization], places: Places) -> dict[Setting, int]:
    """Setting -> where the codes of a weight will begin in the file of a variant that has this setting."""
    return {(how.bits, how.group_size): places.get(v, {}).get(name, 0) for v, how in wanted.items()}
