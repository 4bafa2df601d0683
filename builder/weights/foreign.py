"""Quantization by other programs than mlx: what config.json says of it, and whether mlx-lm can read it. Pure.

`quantization` is mlx's own key. Other programs write `quantization_config`, with the name of their method
in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# The methods that mlx_lm.utils.load_model knows (a test looks into it), for some of their settings.
KNOWN = frozenset(
    {"awq", "gptq", "bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt"},
)
_PACKED_FORMATS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized")
# safetensors codes of weights as they are. Every other code holds packed or scaled numbers.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})
_KEYS = ("quantization_config", "compression_config")
_SUFFIX = re.compile(
    r"(-unsloth)?-(bnb-[48]bit|(gptq|awq|eetq|hqq|aqlm|quip|exl[23]|marlin)\b.*|(w\d+a\d+|int[48]|fp8|nvfp4|quantized)\b.*)$"
)


@dataclass(frozen=True)
class Foreign:
    """A method and its settings. `key` is where they are, for a message."""

    method: str
    key: str
    settings: Mapping[str, Any]

    @property
    def is_readable(self) -> bool:
        """Whether mlx-lm has code for weights that are packed so. The code may still refuse them."""
        if self.method == "compressed-tensors":
            return self.settings.get("format") in _PACKED_FORMATS
        if self.method == "fp8":
            return self.is_mxfp8
        return self.method in KNOWN

    @property
    def is_mxfp8(self) -> bool:
        """Whether mlx-lm keeps these FP8 weights packed: power-of-two scales over blocks of 32 x 32."""
        size = self.settings.get("weight_block_size")
        return self.method == "fp8" and self.settings.get("scale_fmt") == "ue8m0" and size == [32, 32]

    @property
    def can_be_dequantized(self) -> bool:
        """Whether `dequantize = true` can work. mlx-lm takes GPTQ's weights to be in the order of AWQ."""
        return self.is_readable and self.method not in ("gptq", "bitnet")


def foreign(config: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> Foreign | None:
    """What a config says of another program's quantization. None if it says nothing, or if mlx quantized it.

    `beside` is the content of hf_quant_config.json, which mlx-lm reads if config.json says nothing.
    """
    if config.get("quantization"):
        return None
    text = config.get("text_config")
    for where, key in [(config, key) for key in _KEYS] + [(text, "quantization_config")]:
        settings = where.get(key) if isinstance(where, Mapping) else None
        if isinstance(settings, Mapping) and settings:
            name = f"text_config.{key}" if where is text else key
            return Foreign(_method(settings), f"{name} in config.json", settings)
    if beside:
        return Foreign(_method(beside, "modelopt"), "hf_quant_config.json", beside)
    return None


def is_packed(dtypes: Iterable[str]) -> bool:
    """Whether tensors of these safetensors codes hold anything but plain numbers."""
    return not _PLAIN.issuperset(dtypes)


def original_name(name: str) -> str | None:
    """The name of a repository without what says how it was quantized. None if it says nothing of that.

    >>> original_name("unsloth/Qwen3-8B-unsloth-bnb-4bit")
    'unsloth/Qwen3-8B'
    """
    found = _SUFFIX.search(name.lower())
    return name[: found.start()] if found and found.start() else None


def _method(settings: Mapping[str, Any], unsaid: str = "a method without a name") -> str:
    method = settings.get("quant_method")
    if isinstance(method, str) and method:
        return method
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return unsaid
