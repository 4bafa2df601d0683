"""What a target is compared with: base + adapter, fused, unquantized, in float32; never written to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from builder.engine.loading import LoadedAdapter, load_base, lora_layers, replacements


def reference_model(base: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> nn.Module:
    """The fused model, lazy: each weight is read and fused when it is first used.

    `base` and `adapter` are as `builder.evaluate.run` describes them to the worker. Raises BuildError.
    """
    model, _ = load_base(
        Path(base["directory"]), dequantize=base["dequantize"], trust_remote_code=base["trust_remote_code"]
    )
    if adapter is not None:
        fuse(model, _load_adapter(adapter))
    model.set_dtype(mx.float32)
    model.eval()
    return model


def fuse(model: nn.Module, adapter: LoadedAdapter) -> None:
    """Put the fused layers and replaced parameters into the model. Raises AdapterMismatch."""
    layers = lora_layers(model, adapter)
    if replaced := replacements(model, adapter):
        model.load_weights(list(replaced.items()), strict=False)
    model.update_modules(tree_unflatten([(path, layer.fuse()) for path, layer in layers.items()]))


def _load_adapter(adapter: Mapping[str, Any]) -> LoadedAdapter:
    from builder.sources.adapter import load_tensors, read_adapter
    from builder.spec import Adapter

    info = read_adapter(Adapter(adapter["name"], adapter["base"], Path(adapter["path"])))
    return LoadedAdapter(info.name, info.fine_tune_type, load_tensors(info), info.scales)
