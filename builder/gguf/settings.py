"""The settings of a model as keys of a GGUF, from its config.json. Pure.

A setting that llama.cpp does not read is refused where its value is not the one that llama.cpp computes with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Settings = dict[str, int | float | str | bool]


class Unwritable(ValueError):
    """A model that cannot be a GGUF. The text says why."""


def key_heads(config: Mapping[str, Any]) -> int:
    """How many heads the keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary embedding, from where transformers 5 or an older version keeps them."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    base = config.get("rope_theta", 10000.0)
    found = {"rope_theta": base, **old, **new}
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}


def settings_of(name: str, config: Mapping[str, Any], rows: int) -> Settings:
    """The keys of a GGUF, without the name of the architecture. Raises Unwritable."""
    head = _head(config)
    made: Settings = {
        "context_length": int(config.get("max_position_embeddings", 2048)),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": key_heads(config),
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "vocab_size": rows,
    }
    _refuse_unlike(config, {"hidden_act": _ACTIVATIONS[name], "attention_dropout": (0, 0.0, None)})
    return made | _rotary(name, config, head) | _OWN.get(name, _nothing)(config, head)


_ACTIVATIONS: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen3moe", "phi3"), ("silu", None)),
    **dict.fromkeys(("gemma2", "gemma3"), ("gelu_pytorch_tanh", "gelu", None)),
}


def _refuse_unlike(config: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]]) -> None:
    """Raises Unwritable for a setting that llama.cpp does not read and takes otherwise."""
    for key, values in allowed.items():
        if config.get(key) not in (*values, None):
            possible = " or ".join(str(value) for value in values if value is not None)
            raise Unwritable(f"{key} = {config[key]}, and llama.cpp computes with {possible}")


def _rotary(name: str, config: Mapping[str, Any], head: int) -> Settings:
    if name == "gemma3":
        return {"rope.freq_base": float(config.get("rope_theta", 1e6)), "rope.dimension_count": head}
    rope = _rope(config)
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0
    made: Settings = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head * partial),
    }
    if partial != 1.0 and name != "phi3":
        raise Unwritable(f"partial_rotary_factor = {partial}, and llama.cpp rotates whole heads here")
    match rope["rope_type"]:
        case "default" | None:
            return made
        case "linear":
            return made | {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        case "llama3" if name == "llama":
            return made
        case "yarn":
            _refuse_unlike(rope, {key: (default,) for key, default in _YARN.items()})
            return made | {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(rope["factor"]),
                "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
            }
    raise Unwritable(f'its rotary embedding is scaled by "{rope["rope_type"]}"')


_YARN = {"beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 0, "attention_factor": None}


def constants(name: str, config: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The divisors of the frequencies in the manner of Llama 3."""
    rope = _rope(config)
    if name != "llama" or rope["rope_type"] != "llama3":
        return {}
    head, base = _head(config), float(rope["rope_theta"])
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    made = []
    for index in range(head // 2):
        turns = context / (2 * math.pi * base ** (2 * index / head))  # in the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        made.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": tuple(made)}


# -- what one architecture alone has ----------------------------------------------------------------------


def _nothing(config: Mapping[str, Any], head: int) -> Settings:
    return {}


def _qwen2(config: Mapping[str, Any], head: int) -> Settings:
    _refuse_unlike(config, {"use_sliding_window": (False,)})
    return _everywhere(config)


def _everywhere(config: Mapping[str, Any]) -> Settings:
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise Unwritable(
            "some of its layers attend to a window, and llama.cpp's attend to all positions here"
        )
    return {}


def _llama(config: Mapping[str, Any], head: int) -> Settings:
    _refuse_unlike(config, {"mlp_bias": (False,)})
    return _everywhere(config)


def _qwen3moe(config: Mapping[str, Any], head: int) -> Settings:
    _refuse_unlike(config, {"decoder_sparse_step": (1,), "use_sliding_window": (False,)})
    if config.get("mlp_only_layers"):
        raise Unwritable("some of its layers have no experts (mlp_only_layers)")
    if not config.get("norm_topk_prob"):
        raise Unwritable("norm_topk_prob is false, and llama.cpp computes with true")
    return {
        "expert_count": int(config["num_experts"]),
        "expert_used_count": int(config["num_experts_per_tok"]),
        "expert_feed_forward_length": int(config["moe_intermediate_size"]),
    }


def _gemma(config: Mapping[str, Any], head: int) -> Settings:
    _refuse_unlike(config, {"query_pre_attn_scalar": (head, float(head))})
    return {"attention.sliding_window": int(config["sliding_window"])}


def _gemma2(config: Mapping[str, Any], head: int) -> Settings:
    return _gemma(config, head) | {
        "attn_logit_softcapping": float(config["attn_logit_softcapping"]),
        "final_logit_softcapping": float(config["final_logit_softcapping"]),
    }


def _gemma3(config: Mapping[str, Any], head: int) -> Settings:
    if config.get("rope_scaling"):
        raise Unwritable("its rotary embedding is scaled (rope_scaling)")
    _refuse_unlike(config, {"sliding_window_pattern": (6,)})
    local = float(config.get("rope_local_base_freq", 10000.0))
    return _gemma(config, head) | {"rope.freq_base_swa": local}


def _phi3(config: Mapping[str, Any], head: int) -> Settings:
    window = config.get("sliding_window")
    return {"attention.sliding_window": int(window)} if window else {}


_OWN: Mapping[str, Callable[[Mapping[str, Any], int], Settings]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen2,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
