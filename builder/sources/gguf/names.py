"""The names of a GGUF's tensors of the llama family, and what Hugging Face calls them."""

from __future__ import annotations

import re

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(\w+)")


def hub_name(name: str) -> str:
    """The Hugging Face name of a GGUF's tensor, or the name itself where it is not a known one."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] in INNER:
        return f"model.layers.{match[1]}.{INNER[match[2]]}.{match[3]}"
    return OUTER.get(name, name)
