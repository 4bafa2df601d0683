"""What llama.cpp calls a model's tensors and settings, from its config.json. Pure.

The tensors are those of a folder as mlx-lm saves it. What llama.cpp would compute otherwise is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from builder.errors import BuildError

Order = Literal["as is", "query", "key"]


class GgufRefused(BuildError):
    """{target} as GGUF: {what}."""

    hint = "docs/publish.md lists what can be written. llama.cpp would compute something else."


class Unwritable(ValueError):
    """A model that cannot be a GGUF. The text says why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF and the tensor of the folder that it is made of.

    `order` says how rows of a rotated projection are put in llama.cpp's order. `plus` is added to each value.
    `single`: always float32, such as a norm or a router.
    """

    name: str
    source: str
    order: Order = "as is"
    plus: float = 0.0
    single: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model for llama.cpp. `settings` are keys of the GGUF without the name of the architecture.

    `heads` and `key_heads` are for the order of rows. `constants` are tensors that no folder has, float32.
    """

    name: str
    settings: Mapping[str, int | float | str | bool]
    tensors: tuple[Tensor, ...]
    heads: int
    key_heads: int
    rows: int  # of the embedding
    constants: Mapping[str, tuple[float, ...]]


_NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
    "phi3": "phi3",
}
ARCHITECTURES = tuple(_NAMES)
_ROTATED_IN_PAIRS = ("llama",)  # llama.cpp rotates neighbours, so their rows stand side by side
_NORMS_PLUS_ONE = ("gemma2", "gemma3")  # mlx-lm adds 1 when it computes, llama.cpp wants it in the file

_BLOCK = {  # name in a layer of the folder -> name in a block of the GGUF
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_SANDWICH = {  # gemma puts norms after attention and after the MLP too
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def architecture(config: Mapping[str, Any], names: Sequence[str], rows: int) -> Architecture:
    """A model of config.json with these tensors, whose embedding has `rows` rows. Raises Unwritable."""
    kind = str(config.get("model_type"))
    if kind not in _NAMES:
        raise Unwritable(f'model_type "{kind}" cannot be written (possible: {", ".join(ARCHITECTURES)})')
    name = _NAMES[kind]
    text = {**config, **config.get("text_config", {})} if kind == "gemma3" else {**config}
    settings = _settings(name, text, rows)
    heads, key_heads = int(text["num_attention_heads"]), _key_heads(text)
    tensors = tuple(_tensor(name, each) for each in names if not each.endswith(".inv_freq"))
    lacking = {"token_embd.weight", "output_norm.weight"} - {tensor.name for tensor in tensors}
    if lacking:
        raise Unwritable(
            f"its tensors have other names than llama.cpp knows ({sorted(lacking)[0]} is missing)"
        )
    return Architecture(name, settings, tensors, heads, key_heads, rows, _constants(name, text))


def _tensor(architecture: str, source: str) -> Tensor:
    plain = source.removeprefix("language_model.")
    is_norm = "norm" in plain
    plus = 1.0 if is_norm and architecture in _NORMS_PLUS_ONE else 0.0
    if plain in _OUTER:
        return Tensor(_OUTER[plain], source, plus=plus, single=is_norm)
    match = _LAYER.fullmatch(plain)
    names = {**_BLOCK, **(_SANDWICH if architecture in _NORMS_PLUS_ONE else {})}
    if match is None or match[2] not in names:
        raise Unwritable(f'llama.cpp has no place for its tensor "{source}"')
    inner = names[match[2]]
    order: Order = "as is"
    if architecture in _ROTATED_IN_PAIRS and inner in ("attn_q", "attn_k"):
        order = "query" if inner == "attn_q" else "key"
    single = is_norm or match[3] == "bias" or inner == "ffn_gate_inp"
    return Tensor(f"blk.{match[1]}.{inner}.{match[3]}", source, order, plus, single)


# -- settings ------------------------------------------------------------------------------------------------


def _key_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _head(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary embedding, from where transformers 5 or an older version keeps them."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    base = config.get("rope_theta", 10000.0)
    found = {"rope_theta": base, **old, **new}
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}


def _settings(name: str, config: Mapping[str, Any], rows: int) -> dict[str, int | float | str | bool]:
    head = _head(config)
    made: dict[str, int | float | str | bool] = {
        "context_length": int(config.get("max_position_embeddings", 2048)),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": _key_heads(config),
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


def _rotary(name: str, config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    if name == "gemma3":
        return {"rope.freq_base": float(config.get("rope_theta", 1e6)), "rope.dimension_count": head}
    rope = _rope(config)
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0
    made: dict[str, int | float | str | bool] = {
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


def _constants(name: str, config: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
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


def _nothing(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    return {}


def _qwen2(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    _refuse_unlike(config, {"use_sliding_window": (False,)})
    return _everywhere(config)


def _everywhere(config: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise Unwritable(
            "some of its layers attend to a window, and llama.cpp's attend to all positions here"
        )
    return {}


def _llama(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    _refuse_unlike(config, {"mlp_bias": (False,)})
    return _everywhere(config)


def _qwen3moe(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
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


def _gemma(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    _refuse_unlike(config, {"query_pre_attn_scalar": (head, float(head))})
    return {"attention.sliding_window": int(config["sliding_window"])}


def _gemma2(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    return _gemma(config, head) | {
        "attn_logit_softcapping": float(config["attn_logit_softcapping"]),
        "final_logit_softcapping": float(config["final_logit_softcapping"]),
    }


def _gemma3(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    if config.get("rope_scaling"):
        raise Unwritable("its rotary embedding is scaled (rope_scaling)")
    _refuse_unlike(config, {"sliding_window_pattern": (6,)})
    local = float(config.get("rope_local_base_freq", 10000.0))
    return _gemma(config, head) | {"rope.freq_base_swa": local}


def _phi3(config: Mapping[str, Any], head: int) -> dict[str, int | float | str | bool]:
    window = config.get("sliding_window")
    return {"attention.sliding_window": int(window)} if window else {}


_OWN: Mapping[str, Callable[[Mapping[str, Any], int], dict[str, int | float | str | bool]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen2,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
