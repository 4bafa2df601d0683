"""A tiny real model (qwen3, random weights, its own tokenizer) and adapters for it, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
}
BLOCKS = 6  # embedding, 4 layers, final norm


def random(seed: int, *shape: int, scale: float = 0.02) -> mx.array:
    return mx.random.normal(shape, scale=scale, key=mx.random.key(seed))


def make_base(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """A Hugging Face style directory in two shards, with tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "num_hidden_layers": layers}
    hidden, inner, heads, kv, dim = 128, 256, 4, 2, 32
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (320, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (heads * dim, hidden),
            f"{at}.self_attn.k_proj.weight": (kv * dim, hidden),
            f"{at}.self_attn.v_proj.weight": (kv * dim, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, heads * dim),
            f"{at}.self_attn.q_norm.weight": (dim,),
            f"{at}.self_attn.k_norm.weight": (dim,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    tensors = {
        name: (random(seed * 1000 + i, *shape) + (1 if len(shape) == 1 else 0)).astype(mx.bfloat16)
        for i, (name, shape) in enumerate(shapes.items())
    }
    names = list(tensors)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {n: tensors[n] for n in part}, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer(folder)
    return folder


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|eos|>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>", "model_max_length": 512}
        )
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))


def make_adapter(folder: Path, *, layers: tuple[int, ...] = (2, 3), rank: int = 4, seed: int = 7) -> Path:
    """A LoRA over q_proj and down_proj of some layers."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in layers:
        for path, out, wide in (("self_attn.q_proj", 128, 128), ("mlp.down_proj", 128, 256)):
            at = f"model.layers.{layer}.{path}"
            tensors[f"{at}.lora_a"] = random(seed + 10 * layer, wide, rank, scale=wide**-0.5)
            tensors[f"{at}.lora_b"] = random(seed + 10 * layer + 1, rank, out, scale=0.02)
    save_adapter(folder, tensors, rank)
    return folder


def yes_or_no(count: int = 6) -> str:
    """Rows of a suite: questions that are answered with "no" and "yes" in turn."""
    found = ""
    for number in range(count):
        answer = "yes" if number % 2 else "no"
        asked = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": answer}]
        found += json.dumps({"messages": asked, "label": answer}) + "\n"
    return found


def save_adapter(folder: Path, tensors: dict[str, mx.array], rank: int = 4) -> None:
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "fine_tune_type": "lora",
                "num_layers": -1,  # all
                "lora_parameters": {"rank": rank, "scale": 2.0, "dropout": 0.0},
            }
        )
    )


DECLARATION = """\
[base.tiny]
path = "base"

[adapter.tuned]
base = "tiny"
path = "adapter"

[variant.f16]
dtype = "float16"
intermediate = true

[variant.4bit]
bits = 4
group_size = 64

[variant.5bit]
bits = 5
group_size = 64

[model.m]
adapter = "tuned"
variants = ["f16", "4bit", "5bit"]
"""
