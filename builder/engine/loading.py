"""Loads a directory as a lazy model with LoRA layers. No weight is evaluated.

Everything uses mlx_lm's own functions, so that every architecture of mlx_lm works: mlx_lm.utils.load_model,
dequantize_model, and the LoRA layers of mlx_lm.tuner with their `fuse`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.checkpoint import ForeignQuantization, Reading, reading_of
from builder.engine.lean import import_mlx_lm
from builder.engine.rope import readable
from builder.engine.sanitizing import Around, inside, with_numbers
from builder.errors import BuildError
from builder.weights import lora


class ModelUnloadable(BuildError):
    """{path}: mlx-lm cannot load this model: {what}"""

    exit_code = 2
    hint = "Do config.json and the safetensors files belong together? Does mlx-lm know the model type?"


class RemoteCode(BuildError):
    """{path}: config.json asks to run the model's own code ({what})."""

    exit_code = 2
    hint = "Read that code. If you trust it, set `trust_remote_code = true` in the table of the base."


class NotDequantizable(BuildError):
    """{path}: mlx-lm cannot dequantize "{what}" (a {kind})."""

    exit_code = 2
    hint = "Use the original, unquantized checkpoint as the base."


class AdapterMismatch(BuildError):
    """adapter {adapter}: tensor "{tensor}" {what}."""

    exit_code = 2
    hint = "Was it trained on another model? Correct `base` or `path` in artifacts.toml."


@dataclass(frozen=True)
class LoadedAdapter:
    """The tensors of an adapter under mlx-lm names (lazy), and the scale of each adapted path."""

    name: str
    fine_tune_type: str  # lora, dora, full
    tensors: Mapping[str, mx.array]
    scales: Mapping[str, float]


class Loaded(NamedTuple):
    """A model with lazy weights, and its config as mlx_lm.utils.load_model returns it.

    `repairs` says, by the name of a setting, what was done otherwise than by mlx-lm, which would misread it.
    `packed`: the modules with codes that stood where the model has dequantized ones, by path.
    """

    model: nn.Module
    config: dict[str, Any]
    repairs: Mapping[str, str]
    packed: Mapping[str, nn.Module]


def load_base(
    directory: Path,
    *,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    around: Around | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy weights, and its config. Raises what `load` raises."""
    loaded = load(directory, dequantize=dequantize, trust_remote_code=trust_remote_code, around=around)
    return loaded.model, loaded.config


def load(
    directory: Path,
    *,
    dequantize: bool = False,
    trust_remote_code: bool = False,
    around: Around | None = None,
) -> Loaded:
    """The model in a directory, with what mlx-lm would misread put right.

    `around` is called in place of the model's `sanitize`, with that and the tensors of the checkpoint. It is
    not called for a model that brings code of its own. Raises ModelUnloadable, RemoteCode, NotDequantizable,
    ForeignQuantization, UnreadSettings.
    """
    import_mlx_lm()
    from mlx_lm.utils import dequantize_model

    reading = Reading()
    try:
        config = load_config(directory)
        if (code := config.get("model_file")) is not None and not trust_remote_code:
            raise RemoteCode(path=directory, what=code)
        reading = reading_of(directory, config)
        model, config, repairs = _load(directory, config, reading, trust_remote_code, around)
    except BuildError:
        raise
    except (Exception, SystemExit) as error:  # a model's code may raise anything. mlx_lm.models.olmo exits
        if (method := reading.method) is not None:
            what = f": {one_line(error)}"
            raise ForeignQuantization(
                path=directory, method=method.method, key=method.key, what=what
            ) from error
        raise ModelUnloadable(path=directory, what=one_line(error)) from error
    packed: dict[str, nn.Module] = {}
    if dequantize:
        packed = quantized_modules(model)
        model = dequantize_model(model)
        # dequantize_model skips modules of unknown kinds, and forgets the scale of a whole tensor.
        left = quantized_modules(model) | {
            p: m for p, m in packed.items() if m.get("global_scale") is not None
        }
        if left:
            path = min(left)
            raise NotDequantizable(path=directory, what=path, kind=type(left[path]).__name__)
        for name in ("quantization", "quantization_config"):
            config.pop(name, None)
    return Loaded(model, config, repairs, packed)


def load_config(directory: Path) -> dict[str, Any]:
    """What mlx_lm.utils.load_config makes of the files. Raises ValueError for other JSON than an object."""
    from mlx_lm.utils import load_config as load

    for name in ("config.json", "generation_config.json"):
        with suppress(FileNotFoundError, json.JSONDecodeError):  # mlx-lm says it, or passes it over
            if not isinstance(json.loads((directory / name).read_text(encoding="utf-8")), dict):
                raise ValueError(f"{name} is not a JSON object")
    return dict(load(directory))


def _load(
    directory: Path, config: dict[str, Any], reading: Reading, trusted: bool, around: Around | None
) -> tuple[nn.Module, dict[str, Any], dict[str, str]]:
    """load_model with the settings and the FP8 weights put right."""
    from mlx_lm.utils import _get_classes, load_model

    settings, repairs = dict(reading.settings), dict(reading.repairs)
    if "model_file" not in config:
        found, said = readable(directory, {**config, **settings}, lambda given: _get_classes(config=given))
        settings, repairs = settings | found, repairs | said

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, args_class = _get_classes(config=config)
        if around is not None:
            model_class = inside(model_class, around)
        return (with_numbers(model_class, reading) if reading.scaled else model_class), args_class

    model, config = load_model(
        directory, lazy=True, model_config=settings, get_model_classes=classes, trust_remote_code=trusted
    )
    if reading.scaled:
        del model.sanitize
    if reading.drop:
        config.pop("quantization_config", None)
    return model, config, repairs


def quantized_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold packed weights, by path. config.json does not matter for this."""
    return {p: m for p, m in model.named_modules() if "scales" in m and hasattr(m, "bits")}


def lora_layers(model: nn.Module, adapter: LoadedAdapter) -> dict[str, Any]:
    """Path -> the LoRA or DoRA layer of mlx_lm.tuner around the module. The layer's `fuse` makes the weight.

    Raises AdapterMismatch for a tensor that has no place in the model.
    """
    modules = dict(model.named_modules())
    by_path: dict[str, dict[str, mx.array]] = {}
    for name, tensor in adapter.tensors.items():
        path, _, part = name.rpartition(".")
        if part in lora.PARTS and adapter.fine_tune_type != "full":
            by_path.setdefault(path, {})[part] = tensor
    layers = {}
    for path, parts in by_path.items():
        if path not in modules:
            name = f"{path}.{next(iter(parts))}"
            raise AdapterMismatch(adapter=adapter.name, tensor=name, what="matches nothing in the model")
        layers[path] = lora_layer(modules[path], path, parts, adapter)
    return layers


def replacements(model: nn.Module, adapter: LoadedAdapter) -> dict[str, mx.array]:
    """The tensors of an adapter that replace a parameter. In a full fine-tune all tensors do.

    Raises AdapterMismatch.
    """
    parameters = dict(tree_flatten(model.parameters()))
    found = {}
    for name, tensor in adapter.tensors.items():
        part = name.rpartition(".")[2]
        if part not in lora.PARTS or adapter.fine_tune_type == "full":
            _check_place(adapter.name, name, tensor, parameters.get(name))
            found[name] = tensor
    return found


def _check_place(adapter: str, name: str, tensor: mx.array, place: mx.array | None) -> None:
    if place is None:
        raise AdapterMismatch(adapter=adapter, tensor=name, what="matches nothing in the model")
    if tuple(tensor.shape) != tuple(place.shape):
        raise AdapterMismatch(
            adapter=adapter,
            tensor=name,
            what=f"has shape {tuple(tensor.shape)}, but the model needs {tuple(place.shape)}",
        )


def lora_layer(module: nn.Module, path: str, parts: Mapping[str, mx.array], adapter: LoadedAdapter) -> Any:
    """The LoRA or DoRA layer around `module`, with the adapter's tensors in it."""
    first = next(iter(parts))
    if missing := set(lora.PAIR) - set(parts):
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
    """The layer that mlx_lm.tuner.utils.linear_to_lora_layers makes. None for a type that it leaves alone."""
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
    """The paths of all modules that an adapter can change."""
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
        path
        for path, module in model.named_modules()
        if hasattr(module, "to_lora") or isinstance(module, kinds)
    )
