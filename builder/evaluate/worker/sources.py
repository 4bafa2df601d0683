"""Makes models from a base and an adapter: fused, unquantized, in float32, and never on disk.

Such a model is the reference that a target is compared with, or an unquantized target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from builder.engine.inspect import inspect
from builder.engine.loading import LoadedAdapter, load_base, lora_layers, replacements
from builder.engine.merging import with_merges
from builder.engine.stored import Stored, stored_under
from builder.evaluate.worker.scorable import Origin, Scorable, in_float32, origin_of


def reference_model(base: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> Scorable:
    """The fused model. Each weight is read and fused when it is first used. Raises BuildError.

    `base` and `adapter` are as in the request that `builder.evaluate.run` makes.
    """
    origin = origin_of(Path(base["directory"]))
    model = _load(base, origin)
    adapted = fuse(model, _load_adapter(adapter, base)) if adapter is not None else {}
    model.eval()
    return in_float32(model, adapted=adapted, origin=origin)


def stored_model(base: Mapping[str, Any], adapter: Mapping[str, Any] | None, dtype: str | None) -> Scorable:
    """An unquantized target with the numbers that its directory would hold. Raises BuildError."""
    origin = origin_of(Path(base["directory"]))
    model = _load(base, origin)
    own = {name: array.dtype for name, array in tree_flatten(model.parameters())}
    adapted = fuse(model, _load_adapter(adapter, base)) if adapter is not None else {}
    castable = getattr(model, "cast_predicate", lambda _: True)

    def stored(name: str, array: mx.array) -> mx.array:
        """Casts as `builder.engine.block` does."""
        wanted = own.get(name, array.dtype)
        if dtype is not None and castable(name):
            wanted = getattr(mx, dtype)
        return array.astype(wanted) if mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(stored, model.parameters()))
    model.eval()
    return in_float32(model, adapted=adapted, origin=origin)


def _load(base: Mapping[str, Any], origin: Origin | None) -> nn.Module:
    directory, trusted = Path(base["directory"]), base["trust_remote_code"]
    around = origin.trace.around if origin is not None else None
    model, _ = load_base(directory, dequantize=base["dequantize"], trust_remote_code=trusted, around=around)
    return model


def fuse(model: nn.Module, adapter: LoadedAdapter) -> dict[str, Stored]:
    """Puts the fused layers and replaced parameters into the model. Raises AdapterMismatch.

    Returns the stacks of experts before that, with what is added to them, where our kernels can add it.
    """
    layers = lora_layers(model, adapter)
    replaced = replacements(model, adapter)
    adapted = {
        path: stored
        for path, layer in layers.items()
        if f"{path}.weight" not in replaced and (stored := stored_under(layer)) is not None
    }
    if replaced:
        model.load_weights(list(replaced.items()), strict=False)
    model.update_modules(tree_unflatten([(path, layer.fuse()) for path, layer in layers.items()]))
    return adapted


def _load_adapter(adapter: Mapping[str, Any], base: Mapping[str, Any]) -> LoadedAdapter:
    from builder.sources.adapters.places import placed, places_of
    from builder.sources.adapters.reading import read_adapter
    from builder.sources.adapters.tensors import load_merges, load_tensors
    from builder.spec.types import Adapter

    declared = Adapter(adapter["name"], adapter["base"], Path(adapter["path"]))
    info, directory, trusted = read_adapter(declared), Path(base["directory"]), base["trust_remote_code"]
    if info.layout == "peft":
        structure = inspect(directory, dequantize=base["dequantize"], trust_remote_code=trusted)
        info = placed(info, declared, places_of(structure))
    loaded = LoadedAdapter(info.name, info.fine_tune_type, load_tensors(info), info.scales)
    return with_merges(loaded, load_merges(info), directory, trust_remote_code=trusted)
