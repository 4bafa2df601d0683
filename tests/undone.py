# ruff: noqa: E501 (one row a line)
"""More checkpoints with the names and shapes of Hugging Face, for each thing that a `sanitize` does to a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import mlx.core as mx

from tests.architectures import (
    FULL_SLIDING,
    KDA,
    LFM,
    MAMBA,
    SCALING,
    YARN,
    Architecture,
    dense,
    hybrid,
    moe,
)
from tests.original_names import Tensors, channels_first, joined_latents, one_by_one

Undo = Callable[[Tensors], Tensors]


def renamed(*pairs: tuple[str, str]) -> Undo:
    """Each name after regular substitutions, one after the other."""

    def undo(tensors: Tensors) -> Tensors:
        out = {}
        for name, array in tensors.items():
            for pattern, to in pairs:
                name = re.sub(pattern, to, name)
            out[name] = array
        return out

    return undo


def joined(parts: tuple[str, ...], whole: str, axis: int, *, flip: bool = False) -> Undo:
    """Neighbours that differ in their last names in one tensor, concatenated along an axis, maybe transposed."""

    def undo(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name in tensors:
            if name.endswith(f".{parts[0]}"):
                place = name.removesuffix(parts[0])
                if all(f"{place}{part}" in out for part in parts):
                    made = mx.concatenate([out.pop(f"{place}{part}") for part in parts], axis=axis)
                    out[f"{place}{whole}"] = made.swapaxes(-1, -2) if flip else made
        return out

    return undo


def heads_first(tensors: Tensors) -> Tensors:
    """q, k, v of hunyuan in one tensor: for each key head its two query heads, the key and the value."""
    out = dict(tensors)
    for name in tensors:
        if name.endswith(".q_proj.weight"):
            place = name.removesuffix("q_proj.weight")
            q, k, v = (
                out.pop(f"{place}{part}_proj.weight") for part in "qkv" if f"{place}{part}_proj.weight" in out
            )
            split = [array.reshape(2, -1, 16, array.shape[-1]) for array in (q, k, v)]
            out[f"{place}qkv_proj.weight"] = mx.concatenate(split, axis=1).reshape(-1, q.shape[-1])
    return out


def flat(pattern: str) -> Undo:
    """Tensors that the model keeps in two dimensions, in one."""

    def undo(tensors: Tensors) -> Tensors:
        return {n: a.reshape(-1) if re.search(pattern, n) else a for n, a in tensors.items()}

    return undo


def expert_blocks(tensors: Tensors) -> Tensors:
    """dbrx: all experts of a projection below each other, w2 transposed."""
    found: dict[str, dict[int, mx.array]] = {}
    out = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(w1|v1|w2)\.weight", name)
        if match is None:
            out[name] = array
        else:
            found.setdefault(f"{match[1]}.mlp.{match[3]}", {})[int(match[2])] = array
    for name, arrays in found.items():
        ordered = [arrays[number].T if name.endswith("w2") else arrays[number] for number in sorted(arrays)]
        out[name] = mx.concatenate(ordered, axis=0)
    return out


_PAIR = ("gate_proj.weight", "up_proj.weight")
_WRAP = (r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head")
UNDONE: Mapping[str, tuple[Architecture, tuple[Undo, ...]]] = {
    "shifted norms, text model": (hybrid("qwen3_5", wraps=True, full_attention_interval=2), (channels_first, renamed(*_WRAP))),
    "shifted norms and renamed experts": (
        moe("step3p5", num_attention_groups=2, moe_num_experts=4, moe_top_k=2, share_expert_dim=64, moe_layers_enum="1", layer_types=FULL_SLIDING),
        (renamed((r"\.mlp\.switch_mlp\.", ".moe."), (r"\.mlp\.gate\.gate\.", ".moe.gate."), (r"\.mlp\.gate\.router_bias", ".moe.router_bias"), (r"\.mlp\.share_expert\.", ".share_expert.")),),
    ),
    "multiplied": (
        hybrid("falcon_h1", **MAMBA, mamba_d_ssm=128, embedding_multiplier=2.0, lm_head_multiplier=0.5, attention_in_multiplier=1.3, attention_out_multiplier=0.8, mlp_multipliers=[1.5, 0.6], ssm_in_multiplier=1.2, ssm_out_multiplier=0.9, ssm_multipliers=[0.5, 0.7, 1.1, 1.3, 0.9]),
        (channels_first,),
    ),
    "fused gate and up": (
        hybrid("granitemoehybrid", **SCALING, **MAMBA, layer_types=["attention", "attention"], num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=128),
        (joined(_PAIR, "input_linear.weight", 0), renamed((r"\.mlp\.down_proj", ".mlp.output_linear"), (r"\.mlp\.(in|out)put_linear", r".shared_mlp.\1put_linear"))),
    ),
    "fused experts": (
        hybrid("granitemoehybrid", **SCALING, **MAMBA, layer_types=["mamba", "attention"], shared_intermediate_size=64),
        (joined(_PAIR, "input_linear.weight", 1), renamed((r"\.switch_mlp\.down_proj", ".output_linear"), (r"\.switch_mlp\.", ".")), channels_first),
    ),
    "fused qkv": (
        moe("hunyuan", rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0}, moe_topk=2, num_shared_expert=1, use_mixed_mlp_moe=True, use_qk_norm=True, use_cla=False, cla_share_factor=2, num_experts=1),
        (joined(("up_proj.weight", "gate_proj.weight"), "gate_and_up_proj.weight", 0), heads_first),
    ),
    "concatenated qkv": (
        hybrid("kimi_k3", wraps=True, linear_attn_config=KDA, hidden_act="situ", num_experts_per_token=2),
        (one_by_one({"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}), renamed((r"\.mlp\.experts\.", ".block_sparse_moe.experts.")), joined_latents),
    ),
    "latent attention": (hybrid("bailing_hybrid", layer_group_size=2, group_norm_size=2), (one_by_one({}), joined_latents)),
    "latent attention, indexed": (moe("deepseek_v32"), (one_by_one({}), joined_latents)),
    "expert blocks": (
        moe("dbrx", d_model=64, n_layers=2, n_heads=4, ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}, attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}),
        (expert_blocks,),
    ),
    "transposed experts": (
        moe("llama4", wraps=True, num_experts_per_tok=1, attention_chunk_size=32, interleave_moe_layer_step=1, intermediate_size_mlp=128, rope_scaling=None, use_qk_norm=True),
        (lambda t: {n.removesuffix(".weight") if ".experts." in n else n: a for n, a in t.items()},
         joined(("gate_proj", "up_proj"), "gate_up_proj", 1, flip=True),
         lambda t: {n: a.swapaxes(-1, -2) if n.endswith("experts.down_proj") else a for n, a in t.items()}),
    ),
    "experts of w1, w2 and w3": (hybrid("lfm2_moe", **LFM, use_expert_bias=True, num_dense_layers=1), (one_by_one({"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}), channels_first)),
    "reshaped": (
        Architecture("rwkv7", "state space", {"a_low_rank_dim": 16, "v_low_rank_dim": 16, "gate_low_rank_dim": 16, "decay_low_rank_dim": 16, "head_dim": 32}),
        (flat(r"k_k|k_a|g_norm"),),
    ),
    "a normed head": (dense("baichuan_m1", sliding_window_layers=[1], conv_window=2), ()),
    "a head normed by column": (moe("bailing_moe", norm_head=True), (one_by_one({}),)),
    "renamed root": (dense("gpt_neox", rotary_emb_base=10000, rotary_pct=0.5), (renamed((r"^model\.h\.", "gpt_neox.layers."), (r"^model\.", "gpt_neox."), (r"^gpt_neox\.lm_head", "lm_head")),)),
    "renamed embedding": (dense("spark2_5", hidden_act="gelu", rope_parameters={kind: {"rope_theta": 10000.0, "rope_type": "default"} for kind in FULL_SLIDING}), (renamed((r"model\.embedding\.", "model.embed_tokens.")),)),
    "text model of a larger one": (dense("mistral3", wraps=True), (renamed(*_WRAP),)),
    "yarn": (moe("deepseek_v2", rope_scaling=YARN), (one_by_one({}),)),
}  # fmt: skip


def undone(name: str, tensors: Mapping[str, mx.array]) -> Tensors:
    """Tensors of one of UNDONE under their names in the checkpoint."""
    made = dict(tensors)
    for undo in UNDONE[name][1]:
        made = undo(made)
    return made
