"""The inputs of the benchmarks: checkpoints of random weights and adapters for them, the same for everybody.

    python bench/inputs.py FOLDER [dense] [moe] [tiny_dense] [tiny_moe] [--blocks N]

Every tensor is drawn from its own generator, seeded with the model's seed and the tensor's name, so its
values depend neither on the order in which tensors are made nor on how many blocks there are. Weights are
drawn and written one shard at a time; memory is one shard. A folder is made under another name and renamed
when it is complete, so one that is there is whole, and is left as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

SHARD_BYTES = 500_000_000
ROW_CHUNK = 1 << 22  # elements drawn at a time


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen3 family. With `experts`, every feed-forward is a mixture of that many."""

    blocks: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    experts: int = 0
    dtype: str = "bfloat16"
    active: int = 4  # experts that a token goes through

    def config(self) -> dict[str, object]:
        """The checkpoint's config.json."""
        dense: dict[str, object] = {
            "architectures": ["Qwen3MoeForCausalLM" if self.experts else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if self.experts else "qwen3",
            "torch_dtype": self.dtype,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.blocks,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 4096,
            "eos_token_id": 256,
            "transformers_version": "4.51.0",
        }
        if not self.experts:
            return dense
        return dense | {
            "moe_intermediate_size": self.feed_forward,
            "num_experts": self.experts,
            "num_experts_per_tok": min(self.active, self.experts),
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }

    def attention(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the four projections of a block's attention."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
        }

    def mlp(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the three projections of one feed-forward."""
        wide, narrow = self.feed_forward, self.hidden
        return {"gate_proj": (wide, narrow), "up_proj": (wide, narrow), "down_proj": (narrow, wide)}


SHAPES = {
    "dense": Shape(24, 1536, 4608, heads=12, kv_heads=4, head_dim=128, vocabulary=65536, tied=True),
    "moe": Shape(16, 1024, 768, heads=16, kv_heads=4, head_dim=128, vocabulary=32768, tied=False, experts=16),
    "tiny_dense": Shape(4, 256, 512, heads=4, kv_heads=2, head_dim=64, vocabulary=512, tied=True),
    "tiny_moe": Shape(4, 128, 64, heads=4, kv_heads=2, head_dim=32, vocabulary=512, tied=False, experts=4),
}
TRAINED = {
    "dense": 8,
    "moe": 8,
    "tiny_dense": 2,
    "tiny_moe": 2,
}  # blocks that an adapter trains, from the end


def scaled(name: str, blocks: int | None = None) -> Shape:
    """A shape of SHAPES, with another number of blocks."""
    return SHAPES[name] if blocks is None else replace(SHAPES[name], blocks=blocks)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint, in the order of the blocks."""
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for block in range(shape.blocks):
        prefix = f"model.layers.{block}"
        for name, size in shape.attention().items():
            yield f"{prefix}.self_attn.{name}.weight", size
        for name in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{name}.weight", (shape.head_dim,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", (shape.hidden,)
        if shape.experts:
            yield f"{prefix}.mlp.gate.weight", (shape.experts, shape.hidden)
        for expert in range(max(1, shape.experts)):
            inner = f"{prefix}.mlp.experts.{expert}" if shape.experts else f"{prefix}.mlp"
            for name, size in shape.mlp().items():
                yield f"{inner}.{name}.weight", size
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def draw(seed: int, name: str, size: tuple[int, ...], dtype: str, std: float, mean: float = 0.0) -> mx.array:
    """Normal values of `size`, evaluated; drawn in float32 a few rows at a time."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    rows = max(1, ROW_CHUNK // math.prod(size[1:]))
    parts = []
    for first in range(0, size[0], rows):
        values = generator.standard_normal((min(rows, size[0] - first), *size[1:]), np.float32)
        values *= np.float32(std)
        values += np.float32(mean)
        parts.append(mx.array(values).astype(getattr(mx, dtype)))
        mx.eval(parts[-1])
    whole = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    mx.eval(whole)
    return whole


def make_model(folder: Path, shape: Shape, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a checkpoint in Hugging Face format to `folder`, unless it is there. Returns `folder`."""
    if folder.exists():
        return folder
    work = _fresh(folder)
    size_of = {"bfloat16": 2, "float16": 2, "float32": 4}[shape.dtype]
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = total = 0
    for name, size in tensors(shape):
        count = math.prod(size) * size_of
        if shards[-1] and filled + count > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled, total = filled + count, total + count
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = (
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        arrays = {
            name: draw(seed, name, size, shape.dtype, *((0.02, 0.0) if len(size) > 1 else (0.1, 1.0)))
            for name, size in shard
        }
        mx.save_safetensors(str(work / file), arrays, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(arrays, file))
        del arrays
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(work / "model.safetensors.index.json", index)
    write_settings(work, shape)
    work.rename(folder)
    return folder


def write_settings(folder: Path, shape: Shape) -> None:
    """config.json and a tokenizer."""
    _write_json(folder / "config.json", shape.config())
    _write_tokenizer(folder)


def make_adapter(
    folder: Path, shape: Shape, trained: int, seed: int = 1, rank: int = 8, scale: float = 20.0
) -> Path:
    """Write an mlx-lm LoRA adapter for the last `trained` blocks to `folder`, unless it is there."""
    if folder.exists():
        return folder
    work = _fresh(folder)
    arrays: dict[str, mx.array] = {}

    def add(path: str, lora_a: tuple[int, ...], lora_b: tuple[int, ...], columns: int) -> None:
        arrays[f"{path}.lora_a"] = draw(seed, f"{path}.lora_a", lora_a, "float32", 1 / math.sqrt(columns))
        arrays[f"{path}.lora_b"] = draw(seed, f"{path}.lora_b", lora_b, "float32", 1e-3)

    for block in range(shape.blocks - trained, shape.blocks):
        prefix = f"model.layers.{block}"
        linear = {f"{prefix}.self_attn.{name}": size for name, size in shape.attention().items()}
        if shape.experts:
            linear[f"{prefix}.mlp.gate"] = (shape.experts, shape.hidden)
            for name, (out, columns) in shape.mlp().items():
                a, b = (shape.experts, rank, columns), (shape.experts, out, rank)
                add(f"{prefix}.mlp.switch_mlp.{name}", a, b, columns)
        else:
            linear |= {f"{prefix}.mlp.{name}": size for name, size in shape.mlp().items()}
        for path, (out, columns) in linear.items():
            add(path, (columns, rank), (rank, out), columns)
    mx.save_safetensors(str(work / "adapters.safetensors"), arrays)
    parameters = {"rank": rank, "dropout": 0.0, "scale": scale}
    _write_json(
        work / "adapter_config.json",
        {"fine_tune_type": "lora", "num_layers": trained, "lora_parameters": parameters, "model": "random"},
    )
    work.rename(folder)
    return folder


def make(folder: Path, name: str, blocks: int | None = None) -> tuple[Path, Path, Path]:
    """Make the model `name` of SHAPES and two adapters for its last blocks in `folder`.

    With `blocks`, the model has that many instead of its own, and so do the names. Returns the folders of
    the model and of both adapters; those that are there already are left as they are.
    """
    shape = scaled(name, blocks)
    trained = min(TRAINED[name], shape.blocks)
    folder.mkdir(parents=True, exist_ok=True)
    label = name if blocks is None else f"{name}_{blocks}"
    return (
        make_model(folder / label, shape),
        make_adapter(folder / f"{label}_adapter", shape, trained, seed=1),
        make_adapter(folder / f"{label}_adapter2", shape, trained, seed=2),
    )


def _write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: 256 bytes and one end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|eos|>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|eos|>",
        "model_max_length": 4096,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "generation_config.json", {"eos_token_id": vocabulary["<|eos|>"], "do_sample": True})
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _fresh(folder: Path) -> Path:
    """An empty folder beside `folder`, to be renamed to it."""
    work = folder.with_name(folder.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the inputs of the benchmarks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"any of {', '.join(SHAPES)}; all by default"
    )
    parser.add_argument("--blocks", type=int, help="number of transformer blocks, instead of the model's own")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SHAPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    mx.set_default_device(mx.cpu)
    for name in arguments.names or SHAPES:
        for path in make(arguments.folder, name, arguments.blocks):
            size = sum(file.stat().st_size for file in path.iterdir())
            print(f"{path}  {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
