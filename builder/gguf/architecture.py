"""What llama.cpp calls a model's tensors and settings, from its config.json. Pure.

The tensors are those of a folder as mlx-lm saves it. What llama.cpp would compute otherwise is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from builder.errors import BuildError
from builder.gguf.settings import Unwritable, constants, key_heads, settings_of

Order = Literal["as is", "query", "key"]


class GgufRefused(BuildError):
    """{target} as GGUF: {what}."""

    hint = "docs/publish.md lists what can be written. llama.cpp would compute something else."


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
    name, tensors = tensors_of(kind, names)
    text = {**config, **config.get("text_config", {})} if kind == "gemma3" else {**config}
    settings = settings_of(name, text, rows)
    heads, groups = int(text["num_attention_heads"]), key_heads(text)
    lacking = {"token_embd.weight", "output_norm.weight"} - {tensor.name for tensor in tensors}
    if lacking:
        raise Unwritable(
            f"its tensors have other names than llama.cpp knows ({sorted(lacking)[0]} is missing)"
        )
    return Architecture(name, settings, tensors, heads, groups, rows, constants(name, text))


def tensors_of(kind: str, names: Sequence[str]) -> tuple[str, tuple[Tensor, ...]]:
    """What llama.cpp calls a model type, and the tensors of these names. Raises Unwritable."""
    if kind not in _NAMES:
        raise Unwritable(f'model_type "{kind}" cannot be written (possible: {", ".join(ARCHITECTURES)})')
    name = _NAMES[kind]
    return name, tuple(_tensor(name, each) for each in names if not each.endswith(".inv_freq"))


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
