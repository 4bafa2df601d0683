# ruff: noqa: E501 (one architecture a line)
"""Tiny random checkpoints of mlx-lm's text architectures: small enough to fuse and quantize in a moment.

`REGISTRY` names one configuration per architecture: COMMON with what it changes. `checkpoint` instantiates
mlx_lm's own model class from it, draws its parameters from a seed and saves them under the model's names.
"""

from __future__ import annotations

import importlib
import inspect
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from tests.original_names import original

# Every name that mlx_lm's ModelArgs give to the same few sizes. Unknown names are ignored by from_dict.
COMMON: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 32,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "hidden_act": "silu",
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    # latent attention and its indexer
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "index_head_dim": 32,
    "index_n_heads": 2,
    "index_topk": 8,
    # linear attention and state space
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "time_step_limit": [0.0, 1e30],
    "state_size": 16,
    "ssm_state_size": 16,
    "n_groups": 1,
}
SCALING = {
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 1.0,
        "beta_fast": 32, "beta_slow": 1}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128, "n_inner": 128}


@dataclass(frozen=True)
class Architecture:
    """One configuration. `kind`: dense, moe, hybrid, state space.

    `dtype_key` is where config.json says the dtype; `wraps` puts everything under text_config; `original`
    saves the names of Hugging Face, which `sanitize` turns into the model's own. `fails`: what mlx-lm itself
    says when it cannot build or convert this model. `changed_again`: mlx-lm's `sanitize` changes a model
    that it has sanitized before, so fuse followed by convert is not what convert alone makes of it.
    """

    model_type: str
    kind: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    dtype: str = "bfloat16"
    dtype_key: str = "torch_dtype"
    wraps: bool = False
    original: bool = False
    fails: str = ""
    changed_again: bool = False

    @property
    def name(self) -> str:
        return f"{self.model_type}{'-' + self.label if self.label else ''}"

    @property
    def config(self) -> dict[str, Any]:
        text = {**COMMON, **self.changes}
        own: dict[str, Any] = {"model_type": self.model_type, "eos_token_id": 1}
        if not self.wraps:
            return {**text, **own, self.dtype_key: self.dtype}
        text.setdefault("model_type", self.model_type)
        return {
            **self.changes,
            **own,
            "vocab_size": text["vocab_size"],
            "text_config": {**text, "dtype": self.dtype},
        }


def dense(model_type: str, **changes: Any) -> Architecture:
    return _architecture(model_type, "dense", changes)


def moe(model_type: str, **changes: Any) -> Architecture:
    return _architecture(model_type, "moe", changes)


def hybrid(model_type: str, **changes: Any) -> Architecture:
    return _architecture(model_type, "hybrid", changes)


def ssm(model_type: str, **changes: Any) -> Architecture:
    return _architecture(model_type, "state space", changes)


def _architecture(model_type: str, kind: str, changes: dict[str, Any]) -> Architecture:
    own = {field.name: changes.pop(field.name) for field in fields(Architecture) if field.name in changes}
    return Architecture(model_type, kind, changes, **own)


FULL_SLIDING = ["full_attention", "sliding_attention"]
NO_ROPE = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
NEMOTRON_BLOCK = {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}}
NEMOTRON_LINEAR = {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}}
MAMBA = {"mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 32,
         "mamba_n_groups": 1, "mamba_proj_bias": False, "mamba_conv_bias": True}  # fmt: skip
LFM = {"conv_bias": False, "conv_L_cache": 3, "block_dim": 64, "block_multiple_of": 32,
       "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1]}  # fmt: skip
LONGCAT = {"attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 128, "moe_topk": 2,
           "expert_ffn_hidden_size": 64, "zero_expert_num": 2, "num_layers": 2, "mla_scale_q_lora": True,
           "mla_scale_kv_lora": True}  # fmt: skip
KDA = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 2,
    "head_dim": 32,
    "short_conv_kernel_size": 4,
}

PRISM = {"schema_version": 1, "tensor_namespace": "mlx-lm-text", "hidden_size": 128, "full_attention_interval": 2,
         "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
         "modules": [{"path": "lm_head", "embedding": False, "dtype": "float16", "block": 0}]}  # fmt: skip

REGISTRY: tuple[Architecture, ...] = (
    # dense
    dense("llama"),
    dense("llama", label="tied", tie_word_embeddings=True, dtype="float16"),
    dense("llama", label="biased", attention_bias=True, mlp_bias=True, dtype_key="dtype"),
    dense("llama", label="original", tie_word_embeddings=True, original=True),
    dense("mistral"),
    dense("ministral3", rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}),
    dense("mistral3", wraps=True),
    dense("pixtral", wraps=True),
    dense("qwen"),
    dense("qwen2"),
    dense("qwen2", label="tied", tie_word_embeddings=True),
    dense("qwen2_vl", wraps=True),
    dense("qwen3"),
    dense("qwen3", label="tied", tie_word_embeddings=True, dtype="float16"),
    dense("qwen3_vl", wraps=True),
    dense("qwen3_vl", label="original", wraps=True, original=True),
    dense("gemma"),
    dense("gemma2"),
    dense("gemma3", wraps=True),
    dense("gemma3", label="original", wraps=True, original=True),
    dense("gemma3_text", sliding_window_pattern=2),
    dense("gemma3n", wraps=True, num_kv_shared_layers=1, num_hidden_layers=4, vocab_size_per_layer_input=128, rope_local_base_freq=10000.0, final_logit_softcapping=30.0, layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], hidden_size_per_layer_input=32, altup_num_inputs=2, altup_coef_clip=120.0, altup_correct_scale=True, altup_active_idx=0, laurel_rank=16),
    dense("gemma4", wraps=True, global_head_dim=32, hidden_size_per_layer_input=32, vocab_size_per_layer_input=128, num_kv_shared_layers=1, num_hidden_layers=4, sliding_window_pattern=2),
    dense("gemma4_text", global_head_dim=32, hidden_size_per_layer_input=32, vocab_size_per_layer_input=128, num_kv_shared_layers=1, num_hidden_layers=4, sliding_window_pattern=2),
    dense("phi"),
    dense("phi3"),
    dense("phi3small", dense_attention_every_n_layers=2, ff_intermediate_size=128, gegelu_limit=20.0),
    dense("olmo", fails="No module named 'hf_olmo'", d_model=64, n_layers=2, mlp_hidden_size=128, n_heads=4, embedding_size=128),
    dense("olmo2"),
    dense("olmo3", layer_types=FULL_SLIDING),
    dense("smollm3"),
    dense("granite", **SCALING),
    dense("cohere"),
    dense("cohere", label="normed", use_qk_norm=True),
    dense("cohere2"),
    dense("starcoder2"),
    dense("stablelm"),
    dense("stablelm", label="normed", qk_layernorm=True, use_parallel_residual=True),
    dense("gpt2", **GPT),
    dense("gpt2", label="original", **GPT, original=True),
    dense("gpt_bigcode", **GPT),
    dense("gpt_neox", rotary_emb_base=10000, rotary_pct=0.5),
    dense("gptj", **GPT, rotary_dim=8),
    dense("openelm", num_transformer_layers=2, model_dim=64, ffn_dim_divisor=32, num_query_heads=[4, 4], num_kv_heads=[2, 2], ffn_multipliers=[1.0, 2.0]),
    dense("apertus", post_norm=False, qk_norm=True),
    dense("afm7", fails="unexpected keyword argument 'mode'", hidden_dim=64, num_layers=3, num_kv_reuse_layers=1, num_heads=4, num_kv_heads=2, hidden_dim_scale_factor=2.0),
    dense("baichuan_m1", changed_again=True, sliding_window_layers=[1], conv_window=2),
    dense("bitnet"),
    dense("ernie4_5"),
    dense("exaone", num_layers=2),
    dense("exaone4", rope_scaling={"rope_type": "default"}, sliding_window_pattern="LG"),
    dense("gear", layer_types=["full_attention", "conv"]),
    dense("glm"),
    dense("glm4"),
    dense("helium"),
    dense("hunyuan_v1_dense"),
    dense("internlm2"),
    dense("internlm3"),
    dense("iquestloopcoder"),
    dense("lille-130m", block_size=128, n_embd=64, n_head=4, n_kv_heads=2, n_layer=2),
    dense("mimo"),
    dense("minicpm", dim_model_base=64, scale_depth=1.4, scale_emb=1.0),
    dense("minicpm3", dim_model_base=64, scale_depth=1.4, scale_emb=1.0, rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "original_max_position_embeddings": 64}),
    dense("muse_glimmer"),
    dense("nanbeige"),
    dense("nanochat"),
    dense("nemotron"),
    dense("nemotron-nas", num_key_value_heads=2, block_configs=[NEMOTRON_BLOCK, NEMOTRON_LINEAR]),
    dense("plamo", n_shared_head=2),
    dense("plamo3"),
    dense("seed_oss"),
    dense("spark2_5", hidden_act="gelu", rope_parameters={kind: {"rope_theta": 10000.0, "rope_type": "default"} for kind in FULL_SLIDING}),
    dense("talkie"),
    dense("telechat3"),
    dense("youtu_llm"),
    # mixtures of experts
    moe("mixtral"),
    moe("mixtral", label="original", original=True),
    moe("qwen2_moe"),
    moe("qwen2_moe", label="original", original=True),
    moe("qwen3_moe"),
    moe("qwen3_moe", label="f16", dtype="float16"),
    moe("qwen3_moe", label="original", original=True),
    moe("qwen3_vl_moe", wraps=True),
    moe("olmoe"),
    moe("olmoe", label="original", original=True),
    moe("deepseek"),
    moe("deepseek_v2", rope_scaling=YARN),
    moe("deepseek_v2", label="original", rope_scaling=YARN, original=True),
    moe("deepseek_v3"),
    moe("deepseek_v3", label="original", original=True),
    moe("deepseek_v32"),
    moe("deepseek_v41", o_groups=2, o_lora_rank=32, hc_mult=2, compress_ratios=[0, 4]),
    moe("gpt_oss", layer_types=FULL_SLIDING),
    moe("glm4_moe", use_qk_norm=True, rope_scaling=None),
    moe("glm4_moe", label="original", use_qk_norm=True, rope_scaling=None, original=True),
    moe("glm4_moe_lite"),
    moe("glm4_moe_lite", label="original", original=True),
    moe("glm_moe_dsa", topk_method="noaux_tc", scoring_func="sigmoid", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    moe("granitemoe", **SCALING),
    moe("granitemoe", label="original", **SCALING, original=True),
    moe("phimoe", rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "short_mscale": 1.0, "long_mscale": 1.0}),
    moe("phimoe", label="original", rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "short_mscale": 1.0, "long_mscale": 1.0}, original=True),
    moe("phixtral", num_vocab=128, model_dim=64, num_heads=4, num_layers=2, rotary_dim=8),
    moe("Klear"),
    moe("afmoe", layer_types=FULL_SLIDING, num_dense_layers=1),
    moe("bailing_moe"),
    moe("bailing_moe", label="normed", norm_head=True, changed_again=True),
    moe("dbrx", d_model=64, n_layers=2, n_heads=4, ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}, attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}),
    moe("dots1"),
    moe("dots1", label="original", original=True),
    moe("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1),
    moe("exaone_moe", layer_types=FULL_SLIDING, is_moe_layer=[False, True]),
    moe("hunyuan", rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0}, moe_topk=2, num_shared_expert=1, use_mixed_mlp_moe=True, use_qk_norm=True, use_cla=True, cla_share_factor=2),
    moe("kimi_k25", wraps=True),
    moe("kimi_vl", wraps=True),
    moe("laguna"),
    moe("llama4", wraps=True, num_experts_per_tok=1, attention_chunk_size=32, interleave_moe_layer_step=1, intermediate_size_mlp=128, rope_scaling=None, use_qk_norm=True),
    dense("llama4_text", intermediate_size_mlp=128, no_rope_layers=[1, 0], use_qk_norm=True),
    moe("mellum", layer_types=FULL_SLIDING, rope_parameters={kind: {"rope_theta": 10000.0, "rope_type": "default"} for kind in FULL_SLIDING}),
    moe("mimo_v2_flash", hybrid_layer_pattern=[0, 1], moe_layer_freq=[0, 1], add_swa_attention_sink_bias=True, add_full_attention_sink_bias=False, sliding_window_size=32, topk_method="noaux_tc", scoring_func="sigmoid", swa_rope_theta=10000.0, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=16, swa_v_head_dim=16),
    moe("minimax", shared_intermediate_size=64, rotary_dim=8),
    moe("minimax", label="original", shared_intermediate_size=64, rotary_dim=8, original=True),
    moe("minimax_m3_vl", wraps=True, moe_layer_freq=[0, 1], dense_intermediate_size=128, shared_intermediate_size=64),
    moe("mistral4"),
    moe("muse_spark", wraps=True, post_norm_eps=1e-5, rope_parameters={"rope_theta": 10000.0}, layer_rope_theta=[10000.0, 0], layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=20.0, output_multiplier=1.0, moe_hidden_size=64, num_shared_experts=0),
    moe("solar_open"),
    moe("step3p5", num_attention_groups=2, moe_num_experts=4, moe_top_k=2, share_expert_dim=64, moe_layers_enum="1", layer_types=FULL_SLIDING),
    moe("longcat_flash", **LONGCAT),
    moe("longcat_flash_ngram", **LONGCAT, ngram_vocab_size_ratio=4),
    # attention and recurrence in one model
    hybrid("qwen3_next", full_attention_interval=2),
    hybrid("qwen3_next", label="original", full_attention_interval=2, original=True),
    hybrid("qwen3_5", wraps=True, full_attention_interval=2),
    hybrid("qwen3_5_moe", wraps=True, full_attention_interval=2),
    hybrid("prism_hadamard_qwen35", wraps=True, **PRISM),
    hybrid("falcon_h1", **MAMBA, mamba_d_ssm=128),
    hybrid("falcon_h1", label="original", **MAMBA, mamba_d_ssm=128, original=True),
    hybrid("jamba", **MAMBA, attn_layer_offset=1, attn_layer_period=2, expert_layer_offset=1, expert_layer_period=2),
    hybrid("jamba", label="original", **MAMBA, attn_layer_offset=1, attn_layer_period=2, expert_layer_offset=1, expert_layer_period=2, original=True),
    hybrid("nemotron_h", mamba_num_heads=4, mamba_head_dim=32, mamba_proj_bias=False, hybrid_override_pattern=["M", "*", "-", "E"], moe_latent_size=None),
    hybrid("nemotron_h", label="original", mamba_num_heads=4, mamba_head_dim=32, mamba_proj_bias=False, hybrid_override_pattern=["M", "*", "-", "E"], moe_latent_size=None, original=True),
    hybrid("granitemoehybrid", **SCALING, **MAMBA, layer_types=["mamba", "attention"], shared_intermediate_size=64),
    hybrid("lfm2", **LFM),
    hybrid("lfm2", label="original", **LFM, original=True),
    hybrid("lfm2_moe", **LFM, use_expert_bias=True, num_dense_layers=1),
    hybrid("lfm2-vl", **LFM, wraps=True),
    hybrid("olmo_hybrid", linear_allow_neg_eigval=True, layer_types=["linear_attention", "full_attention"]),
    hybrid("plamo2", hidden_size_per_head=16, mamba_d_state=16, mamba_num_heads=4, full_attention_idx=[1]),
    hybrid("recurrent_gemma", conv1d_width=4, logits_soft_cap=30.0, attention_window_size=32, block_types=["recurrent", "attention"]),
    hybrid("kimi_linear", linear_attn_config=KDA, model_max_length=128, num_experts_per_token=2),
    hybrid("kimi_k3", wraps=True, linear_attn_config=KDA, hidden_act="situ", num_experts_per_token=2),
    hybrid("bailing_moe_linear", layer_group_size=2, group_norm_size=2),
    hybrid("bailing_hybrid", layer_group_size=2, group_norm_size=2),
    hybrid("bailing_moe_v3", layer_group_size=2),
    # state space only
    ssm("mamba"),
    ssm("mamba", label="tied", tie_word_embeddings=True),
    ssm("mamba2", num_heads=4, head_dim=32),
    ssm("mamba2", label="original", num_heads=4, head_dim=32, original=True),
    ssm("rwkv7", a_low_rank_dim=16, v_low_rank_dim=16, gate_low_rank_dim=16, decay_low_rank_dim=16, head_dim=32),
)  # fmt: skip


def checkpoint(folder: Path, architecture: Architecture) -> Path:
    """A directory that mlx_lm loads. Raises whatever mlx_lm raises when it cannot build the model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = architecture.config
    (folder / "config.json").write_text(json.dumps(config))
    config = known(config)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(parameters(build(config), architecture))
    if architecture.original:
        tensors = original(architecture.model_type, tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def known(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the names of COMMON that its model does not ask for."""
    from mlx_lm.utils import _get_classes

    asked = inspect.signature(_get_classes(config)[1]).parameters
    return {name: value for name, value in config.items() if name not in COMMON or name in asked}


def build(config: Mapping[str, Any]) -> nn.Module:
    """The model of a configuration, with mlx_lm's initial weights."""
    from mlx_lm.utils import _get_classes

    model_class, arguments_class = _get_classes(dict(config))
    model = model_class(arguments_class.from_dict(json.loads(json.dumps(config))))
    assert isinstance(model, nn.Module)
    return model


def parameters(model: nn.Module, architecture: Architecture) -> Iterator[tuple[str, mx.array]]:
    """Random parameters, float32 where the model's cast_predicate keeps what it was given."""
    castable = getattr(model, "cast_predicate", lambda _: True)
    dtype = getattr(mx, architecture.dtype)
    for name, array in tree_flatten(model.parameters()):
        if not mx.issubdtype(array.dtype, mx.floating):
            yield name, array
            continue
        key = mx.random.key(zlib.crc32(f"{architecture.name}/{name}".encode()))
        value = mx.random.normal(array.shape, scale=0.02 if array.ndim > 1 else 0.1, key=key)
        yield name, (value if array.ndim > 1 else 1 + value).astype(dtype if castable(name) else mx.float32)


def unregistered() -> list[str]:
    """Modules of mlx_lm.models that hold a model and are not in REGISTRY."""
    folder = Path(importlib.import_module("mlx_lm.models").__path__[0])
    found = {file.stem for file in folder.glob("*.py") if "\nclass Model(" in file.read_text()}
    return sorted(found - {architecture.model_type for architecture in REGISTRY})
