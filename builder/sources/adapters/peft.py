"""Translates PEFT's LoRA into mlx-lm's terms: names, orientation and scale. Pure.

PEFT keeps lora_A as (r, in) and lora_B as (out, r). For an embedding it keeps lora_embedding_A (r, tokens)
and lora_embedding_B (dims, r). mlx-lm keeps all four transposed. The weight becomes W + scale * B A with
scale = alpha / r, or alpha / sqrt(r) with use_rslora (peft.LoraConfig). DoRA's magnitude is `m` in mlx-lm.
What mlx-lm cannot express raises Unfit.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PREFIX = "base_model.model."
_PARTS = {
    "lora_A": "lora_a",
    "lora_B": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
}
# Settings that change the model in a way that LoRA layers of mlx-lm do not have.
_UNSUPPORTED = (
    "trainable_token_indices", "layer_replication", "megatron_config", "lora_bias", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "use_bdlora",
)  # fmt: skip
# These start from a base that PEFT has changed. So the adapter means nothing on top of the original base.
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga", re.IGNORECASE)
_QUANTIFIER = re.compile(r"\)\s*[*+?{]|[*+}]\s*[*+{]")
_MAX_PATTERN, _MAX_QUANTIFIERS = 500, 3


class Unfit(ValueError):
    """The layers of mlx-lm cannot represent something in the adapter. The text says what."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of PEFT belongs: module path, part under mlx-lm's name, and whether to transpose it."""

    path: str
    part: str
    transpose: bool
    embedding: bool = False


def check_config(config: Mapping[str, Any]) -> None:
    """Raises Unfit for another method than LoRA, and for settings that mlx-lm does not have."""
    if (kind := config.get("peft_type")) != "LORA":
        raise Unfit(f"peft_type {reprlib.repr(kind)} is not LORA, the only kind that can be fused here")
    if config.get("bias", "none") != "none":
        raise Unfit(f"bias = {reprlib.repr(config['bias'])} is not supported, only none")
    for name in _UNSUPPORTED:
        if config.get(name):
            raise Unfit(f"{name} is not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
        raise Unfit(
            f'init_lora_weights = "{start[:20]}" starts from a changed base; save it converted to plain LoRA'
            " (path_initial_model_for_weight_conversion)"
        )
    for name in ("use_dora", "use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
        if not isinstance(config.get(name, False), bool | None):
            raise Unfit(f"{name} = {reprlib.repr(config[name])} is not true or false")


def place(name: str, dims: int, config: Mapping[str, Any]) -> Place:
    """The place of one tensor of `dims` dimensions. Raises Unfit for a tensor that cannot be fused."""
    if not name.startswith(_PREFIX):
        raise Unfit(f'tensor "{name}" does not begin with "{_PREFIX}"')
    inner = name.removeprefix(_PREFIX)
    path, _, part = inner.removesuffix(".weight").rpartition(".")
    if part in _PARTS and path and dims == 2:
        return Place(path, _PARTS[part], True, "embedding" in part)
    if part == "lora_magnitude_vector" and path and dims == 1:
        return Place(path, "m", False)
    return _saved_weight(name, inner, config)


def _saved_weight(name: str, inner: str, config: Mapping[str, Any]) -> Place:
    """The place of a parameter that was saved whole (modules_to_save, or an embedding). Raises Unfit."""
    plain = re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", inner)
    path, _, leaf = plain.rpartition(".")
    saved = config.get("modules_to_save") or []
    names = [item for item in saved if isinstance(item, str)] if isinstance(saved, list) else []
    known = plain != inner or any(f".{item}." in f".{path}." for item in names)
    embedding = path.rpartition(".")[2] in ("embed_tokens", "lm_head") and leaf == "weight"
    if not path or not (known or embedding) or ".lora_" in inner:
        raise Unfit(f'tensor "{name}" is of a kind that cannot be fused here')
    return Place(path, leaf, False)


def unwrapped(path: str) -> str:
    """The path of a module without the wrappers that PEFT nests for several parameters of one module."""
    return re.sub(r"(\.base_layer)+$", "", path)


def parameters(config: Mapping[str, Any], path: str) -> list[str]:
    """The parameters of a module that target_parameters names, sorted. Raises Unfit."""
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise Unfit(f"target_parameters = {reprlib.repr(targets)} is not a list of names")
    split = [target.rpartition(".") for target in targets]
    return sorted({name for module, _, name in split if path == module or path.endswith(f".{module}")})


def version(config: Mapping[str, Any]) -> tuple[int, int]:
    """The version of PEFT that wrote the config, or 0.0 where it does not say. PEFT says so since 0.18."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", str(config.get("peft_version")))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def rank(config: Mapping[str, Any], path: str) -> int:
    """The rank r of one path, after rank_pattern. Raises Unfit."""
    value = _by_pattern(config, "rank_pattern", path, config.get("r"))
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise Unfit(f"r = {reprlib.repr(value)} is not a rank")
    return value


def scale(config: Mapping[str, Any], path: str) -> float:
    """The scale of one path: alpha / r, or alpha / sqrt(r) with use_rslora. Raises Unfit.

    alpha and r are those after alpha_pattern and rank_pattern.
    """
    alpha = finite(_by_pattern(config, "alpha_pattern", path, config.get("lora_alpha")), "lora_alpha")
    r = finite(rank(config, path), "r")
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def finite(value: object, name: str) -> float:
    """A JSON number as a float. Raises Unfit for anything else, and for what a float cannot hold."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise Unfit(f"{name} = {reprlib.repr(value)} is not a finite number")


def _by_pattern(config: Mapping[str, Any], name: str, path: str, default: Any) -> Any:
    """The value of the first pattern that matches, else `default`, as peft.utils.get_pattern_key decides.

    A pattern is a regular expression for the end of a path, from a dot on.
    """
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise Unfit(f"{name} = {reprlib.repr(patterns)} is not a table")
    for pattern, value in patterns.items():
        if _compiled(name, pattern).match(path):
            return value
    return default


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    """The pattern, anchored as PEFT does. Raises Unfit for a pattern that might take for ever to match."""
    wild = sum(pattern.count(sign) for sign in "*+{")
    if len(pattern) > _MAX_PATTERN or wild > _MAX_QUANTIFIERS or _QUANTIFIER.search(pattern):
        raise Unfit(f"{name} has a pattern that is too complex: {reprlib.repr(pattern)}")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        raise Unfit(f"{name} has a pattern that is not a valid regex: {reprlib.repr(pattern)}") from None
