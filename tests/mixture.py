"""A tiny mixture of experts (qwen3_moe, random weights) with a tokenizer, and an adapter on its experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.architectures import build
from tests.tiny import _tokenizer, random

LAYERS = 2
CONFIG: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 320,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
}
Tensors = dict[str, mx.array]


def make_mixture(
    folder: Path, plant: Callable[[Tensors], None] = lambda _: None, *, seed: int = 0, **changes: Any
) -> Path:
    """A folder in Hugging Face layout. `plant` may change its tensors, which are float32 until then."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    shapes = {name: tuple(array.shape) for name, array in tree_flatten(build(config).parameters())}
    tensors: Tensors = {
        name: random(seed * 1000 + number, *shape, scale=0.1) + (1 if len(shape) == 1 else 0)
        for number, (name, shape) in enumerate(sorted(shapes.items()))
    }
    plant(tensors)
    dtype = getattr(mx, config["torch_dtype"])
    stored = {name: array.astype(dtype) for name, array in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer(folder)
    return folder


def make_adapter(folder: Path, *, layer: int = 1, rank: int = 4, experts: int = 8) -> Path:
    """A LoRA of mlx-lm on the router, a stack of experts and the attention of one layer."""
    folder.mkdir(parents=True, exist_ok=True)
    at = f"model.layers.{layer}"
    tensors = {
        f"{at}.mlp.switch_mlp.up_proj.lora_a": random(1, experts, rank, 64, scale=0.3),
        f"{at}.mlp.switch_mlp.up_proj.lora_b": random(2, experts, 64, rank, scale=0.3),
        f"{at}.mlp.gate.lora_a": random(3, 64, rank, scale=0.3),
        f"{at}.mlp.gate.lora_b": random(4, rank, experts, scale=0.3),
        f"{at}.self_attn.q_proj.lora_a": random(5, 64, rank, scale=0.3),
        f"{at}.self_attn.q_proj.lora_b": random(6, rank, 64, scale=0.3),
    }
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    keys = ["mlp.switch_mlp.up_proj", "mlp.gate", "self_attn.q_proj"]
    parameters = {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": keys}
    said = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
