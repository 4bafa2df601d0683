"""Tiny models with random weights of every architecture that can be a GGUF, in mlx-lm's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.conftest import Sandbox

COMMON: Mapping[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
    "tie_word_embeddings": False,
}
_GEMMA: Mapping[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "rope_scaling": LLAMA3, "hidden_act": "silu"},
    "llama tied, biased": {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "head_dim": 32},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gemma2": {
        "model_type": "gemma2",
        **_GEMMA,
        "sliding_window": 64,  # mlx-lm attends to all positions, llama.cpp to so many
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
    },
    "phi3": {"model_type": "phi3", "sliding_window": None},
}


def make_model(folder: Path, config: Mapping[str, Any], *, dtype: Any = mx.float16, seed: int = 0) -> Any:
    """The model, and its folder. The weights are large enough that every one of them changes the answers."""
    from mlx_lm.utils import _get_classes

    folder.mkdir(parents=True, exist_ok=True)
    whole = {**COMMON, **config}
    model_class, args_class = _get_classes(whole)
    model = model_class(args_class.from_dict(whole))
    tensors = {}
    for number, (name, value) in enumerate(sorted(tree_flatten(model.parameters()))):
        key = mx.random.key(1000 * seed + number)
        if "norm" in name:
            middle = 0.0 if "gemma" in str(whole["model_type"]) else 1.0
            made = middle + mx.random.normal(value.shape, scale=0.1, key=key)
        else:
            made = mx.random.normal(value.shape, scale=0.08, key=key)
        tensors[name] = made.astype(dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(whole))
    write_tokenizer(folder)
    return model, tensors


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE with a few merges, cut as gpt-2 does, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|eos|>"] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("\u0120", "the")]
    vocabulary |= {"".join(pair): len(vocabulary) + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>"})
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )


def importance(box: Sandbox) -> list[Path]:
    """The importance matrices that the store has."""
    files = [file for file in (box.root / "store/actions").rglob("*") if file.is_file()]
    records = [json.loads(file.read_text().splitlines()[0]) for file in files]
    digests = [record["digest"] for record in records if record["kind"] == "imatrix"]
    return [file for file in (box.root / "store/blobs").rglob("*") if file.name in digests]
