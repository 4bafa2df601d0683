"""From a directory on disk to a lazily fused model: nothing here evaluates a weight.

Everything is expressed with mlx_lm's own functions, so that every architecture it knows works here:
mlx_lm.utils.load_model, dequantize_model, and the LoRA layers of mlx_lm.tuner with their `fuse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from builder.errors import BuildError


class ModelUnloadable(BuildError):
    """{path}: mlx-lm cannot load this model: {what}"""

    exit_code = 2
    hint = "Check that config.json and the safetensors files belong together and that mlx-lm knows the type."


class RemoteCode(BuildError):
    """{path}: config.json asks to run the model's own code ({what})."""

    exit_code = 2
    hint = "Set `trust_remote_code = true` on the base if you have read that code and trust it."


class QuantizedBase(BuildError):
    """{path}: the weights are already quantized; a delta fused into them would be rounded away."""

    exit_code = 2
    hint = "Use the unquantized weights, or set `dequantize = true` on the base to start from its rounded values."


class AdapterMismatch(BuildError):
    """adapter {adapter}: tensor "{tensor}" {what}."""

    exit_code = 2
    hint = "Was it trained on another model? Correct `base` or `path` in artifacts.toml."


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter's tensors under mlx-lm names (lazy), and the scale of each adapted path."""

    name: str
    fine_tune_type: str  # lora, dora, full
    tensors: Mapping[str, mx.array]
    scales: Mapping[str, float]


def load_base(
    directory: Path, *, dequantize: bool = False, trust_remote_code: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy weights, and its config as mlx_lm.utils.load_model returns it.

    Raises ModelUnloadable, RemoteCode.
    """
    from mlx_lm.utils import dequantize_model, load_config, load_model

    try:
        config = load_config(directory)
        if (code := config.get("model_file")) is not None and not trust_remote_code:
            raise RemoteCode(path=directory, what=code)
        model, config = load_model(directory, lazy=True, trust_remote_code=trust_remote_code)
    except BuildError:
        raise
    except Exception as error:  # mlx-lm raises whatever its model code raises
        raise ModelUnloadable(path=directory, what=one_line(error)) from error
    if dequantize:
        model = dequantize_model(model)
        for name in ("quantization", "quantization_config"):
            config.pop(name, None)
    return model, config


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def fuse(model: nn.Module, adapter: LoadedAdapter) -> nn.Module:
    """The model with the adapter fused into its (still lazy) weights, as mlx_lm.fuse does.

    Raises AdapterMismatch for a tensor that the model has no place for.
    """
    if adapter.fine_tune_type == "full":
        return _replace(model, adapter)
    modules = dict(model.named_modules())
    by_path: dict[str, dict[str, mx.array]] = {}
    plain: dict[str, mx.array] = {}
    for name, tensor in adapter.tensors.items():
        path, _, part = name.rpartition(".")
        if part in ("lora_a", "lora_b", "m"):
            by_path.setdefault(path, {})[part] = tensor
        else:
            plain[name] = tensor
    fused = []
    for path, parts in by_path.items():
        if path not in modules:
            raise AdapterMismatch(
                adapter=adapter.name, tensor=f"{path}.lora_a", what="matches nothing in the model"
            )
        layer = _lora_layer(modules[path], path, parts, adapter)
        fused.append((path, layer.fuse()))
    if fused:
        model.update_modules(tree_unflatten(fused))
    if plain:
        _replace(model, LoadedAdapter(adapter.name, "full", plain, {}))
    return model


def _replace(model: nn.Module, adapter: LoadedAdapter) -> nn.Module:
    parameters = dict(tree_flatten(model.parameters()))
    for name, tensor in adapter.tensors.items():
        _check_place(adapter.name, name, tensor, parameters.get(name))
    model.load_weights(list(adapter.tensors.items()), strict=False)
    return model


def _check_place(adapter: str, name: str, tensor: mx.array, place: mx.array | None) -> None:
    if place is None:
        raise AdapterMismatch(adapter=adapter, tensor=name, what="matches nothing in the model")
    if tuple(tensor.shape) != tuple(place.shape):
        raise AdapterMismatch(
            adapter=adapter,
            tensor=name,
            what=f"has shape {tuple(tensor.shape)}, the model needs {tuple(place.shape)}",
        )


def _lora_layer(module: nn.Module, path: str, parts: Mapping[str, mx.array], adapter: LoadedAdapter) -> Any:
    """The LoRA or DoRA layer around `module`, with the adapter's tensors in it."""
    first = next(iter(parts))
    if missing := {"lora_a", "lora_b"} - set(parts):
        raise AdapterMismatch(
            adapter=adapter.name, tensor=f"{path}.{first}", what=f"has no {sorted(missing)[0]} beside it"
        )
    lora_b = parts["lora_b"]
    rank = lora_b.shape[-1] if lora_b.ndim == 3 else lora_b.shape[0]
    layer = _wrap(module, rank, adapter.scales[path], "m" in parts)
    if layer is None:
        raise AdapterMismatch(
            adapter=adapter.name,
            tensor=f"{path}.{first}",
            what=f"is for a {type(module).__name__}, which mlx-lm cannot adapt",
        )
    for part, tensor in parts.items():
        _check_place(adapter.name, f"{path}.{part}", tensor, layer.get(part))
        setattr(layer, part, tensor)
    return layer


def _wrap(module: nn.Module, rank: int, scale: float, dora: bool) -> Any:
    """The dispatch of mlx_lm.tuner.utils.linear_to_lora_layers; None for a type it does not adapt."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
    from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    if not dora and hasattr(module, "to_lora"):
        return module.to_lora(r=rank, scale=scale, dropout=0.0)
    if isinstance(module, nn.Linear | nn.QuantizedLinear):
        kind: Any = DoRALinear if dora else LoRALinear
    elif isinstance(module, SwitchLinear | QuantizedSwitchLinear) and not dora:
        kind = LoRASwitchLinear
    elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        kind = DoRAEmbedding if dora else LoRAEmbedding
    else:
        return None
    return kind.from_base(module, r=rank, scale=scale, dropout=0.0)


def adaptable_paths(model: nn.Module) -> frozenset[str]:
    """Paths of all modules that an adapter can change."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds = (
        nn.Linear,
        nn.QuantizedLinear,
        nn.Embedding,
        nn.QuantizedEmbedding,
        SwitchLinear,
        QuantizedSwitchLinear,
    )
    return frozenset(
        path for path, module in model.named_modules() if hasattr(module, "to_lora") or isinstance(module, kinds)
    )


def cast(model: nn.Module, dtype: str | None, original: Mapping[str, mx.Dtype]) -> nn.Module:
    """Cast as mlx_lm.convert does with its cast_predicate; without a dtype, back to the base's own.

    The latter matters after DoRA, whose fuse returns float32 whatever the base was.
    """
    castable = getattr(model, "cast_predicate", lambda _: True)
    wanted = getattr(mx, dtype) if dtype else None

    def change(name: str, value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        if wanted is not None and castable(name):
            return value.astype(wanted)
        return value.astype(original.get(name, value.dtype))

    model.update(tree_map_with_path(change, model.parameters()))
    return model


def dtypes_of(model: nn.Module) -> dict[str, mx.Dtype]:
    return {name: value.dtype for name, value in tree_flatten(model.parameters())}
