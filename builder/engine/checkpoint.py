"""What a checkpoint holds that mlx-lm misreads without a word, found in its headers before it is loaded.

Three kinds. A `quantization_config` that was left over from training: the weights are plain. Weights that
another program packed in a way that mlx-lm cannot read. FP8 weights, which mlx loads as bytes: mlx-lm
turns them into numbers in the code of some architectures only, and only for some forms of scales.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from builder.errors import BuildError
from builder.spec.types import DTYPES
from builder.weights.foreign import Foreign, foreign, is_packed
from builder.weights.headers import Header, headers

_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALE, _ACTIVATION = "_scale_inv", ("activation_scale", "input_scale")


class ForeignQuantization(BuildError):
    """{path}: the weights are quantized with {method} ({key}), which mlx-lm cannot read{what}."""

    exit_code = 2
    hint = "Use the original, unquantized checkpoint as the base."


@dataclass(frozen=True)
class Reading:
    """How to load a checkpoint.

    `settings` are put over those of config.json. `scaled` are the FP8 weights with one scale each, which
    are made into numbers of `dtype`. `drop` says that quantization_config goes. `repairs` says for a
    person, and for keys, what is done otherwise than by mlx-lm.
    """

    method: Foreign | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    scaled: frozenset[str] = frozenset()
    dtype: str = "bfloat16"
    drop: bool = False
    repairs: Mapping[str, str] = field(default_factory=dict)


def reading_of(directory: Path, config: Mapping[str, Any]) -> Reading:
    """How to load the checkpoint in `directory`. Raises ForeignQuantization where mlx-lm cannot read it."""
    method = foreign(config, _object(directory / "hf_quant_config.json"))
    tensors = headers(directory)
    fp8 = {name for name, tensor in tensors.items() if _is_fp8_weight(name, tensor)}
    if method is None:
        if fp8 and not config.get("quantization"):
            raise _refusal(directory, Foreign("FP8", "the type of its tensors", {}), min(fp8))
        return Reading()
    if not is_packed(tensor.dtype for tensor in tensors.values()):
        if method.method == "bitnet" or not tensors:  # bitnet quantizes plain weights when it runs
            return Reading(method)
        what = f"{method.key} says {method.method}, but the weights are plain: the key is left out"
        return Reading(None, without_method(config), drop=True, repairs={"quantization_config": what})
    if method.method == "fp8" and not method.is_mxfp8:
        return _fp8(directory, config, method, tensors, fp8)
    if not method.is_readable:
        raise _refusal(directory, method)
    return Reading(method)


def without_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that hide a quantization_config from mlx_lm.utils.load_model."""
    hidden: dict[str, Any] = {"quantization_config": None}
    text = config.get("text_config")
    if isinstance(text, dict) and "quantization_config" in text:
        hidden["text_config"] = {k: v for k, v in text.items() if k != "quantization_config"}
    return hidden


def makes_numbers(model_class: type) -> bool:
    """Whether an architecture turns FP8 bytes into numbers when it is loaded: its code calls mx.from_fp8."""
    module = sys.modules[model_class.__module__]
    used = [value for value in vars(module).values() if inspect.ismodule(value)]
    ours = [m for m in (module, *used) if m.__name__.startswith(module.__name__.rpartition(".")[0] + ".")]
    return any("from_fp8" in inspect.getsource(each) for each in ours)


def in_numbers(reading: Reading, sanitize: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """A `sanitize` that multiplies each FP8 weight by its scale, and then does what the model's own does."""
    dtype = getattr(mx, reading.dtype)

    def sanitized(weights: dict[str, mx.array]) -> Any:
        kept = {}
        for name, value in weights.items():
            if name in reading.scaled:
                scale = weights[name + _SCALE].astype(mx.float32)
                kept[name] = (mx.from_fp8(value, dtype=mx.float32) * scale.reshape(())).astype(dtype)
            elif name.removesuffix(_SCALE) not in reading.scaled and not name.endswith(_ACTIVATION):
                kept[name] = value
        return sanitize(kept) if sanitize is not None else kept

    return sanitized


def _fp8(
    directory: Path,
    config: Mapping[str, Any],
    method: Foreign,
    tensors: Mapping[str, Header],
    fp8: set[str],
) -> Reading:
    """One scale for each FP8 tensor is applied here. Other scales are the business of the architecture."""
    from mlx_lm.utils import _get_classes

    scales = {name: tensors.get(name + _SCALE) for name in fp8}
    single = {name for name, scale in scales.items() if scale is not None and prod(scale.shape) == 1}
    if left := sorted(fp8 - single):
        if not makes_numbers(_get_classes(dict(config))[0]):
            raise _refusal(directory, method, left[0])
        return Reading(method)
    if wide := sorted(name for name in fp8 if tensors[name].dtype != "F8_E4M3"):
        raise _refusal(directory, method, wide[0])
    if not single:
        raise _refusal(directory, method)
    what = "FP8 weights with one scale each, which mlx-lm takes for integers, are made into numbers"
    return Reading(method, without_method(config), frozenset(single), _dtype(config), True, {"fp8": what})


def _refusal(directory: Path, method: Foreign, tensor: str = "") -> ForeignQuantization:
    what = f': tensor "{tensor}" is FP8 with scales that nothing here applies' if tensor else ""
    return ForeignQuantization(path=directory, method=method.method, key=method.key, what=what)


def _is_fp8_weight(name: str, tensor: Header) -> bool:
    return tensor.dtype in _FP8 and "scale" not in name.rpartition(".")[2]


def _dtype(config: Mapping[str, Any]) -> str:
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    said = [place.get(key) for place in places for key in ("torch_dtype", "dtype")]
    return next((str(dtype) for dtype in said if dtype in DTYPES), "bfloat16")


def _object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
