"""Imports a GGUF of the llama family as a Hugging Face style directory, one block in memory at a time.

Weights become float16, dequantized in float32 as mx.load and mx.dequantize would (tests compare the bits).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from builder.errors import SourceInvalid
from builder.shards import RawTensor, encode
from builder.sources.gguf_header import GgufFile, GgufTensor, read_gguf_header
from builder.sources.gguf_tokenizer import Unsupported, token_ids, tokenizer_files

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
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
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class ImportedFile:
    """One file of the directory: its name and its bytes in order."""

    name: str
    chunks: Sequence[bytes | memoryview]


def import_gguf(path: Path, table: str) -> Iterator[ImportedFile]:
    """The files of a Hugging Face style directory, one after the other.

    Raises SourceMissing, SourceInvalid: not a sound GGUF, another architecture, a tensor that is missing,
    unknown or of the wrong shape, a tokenizer that cannot be written.
    """
    file = read_gguf_header(path, table)
    config = _config(file, table)
    try:
        texts = tokenizer_files(file.metadata, config["max_position_embeddings"])
    except Unsupported as error:
        _refuse(file, table, str(error))
    blocks = _blocks(file, config, table)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(blocks, start=1):
        shard = f"model-{number:05d}-of-{len(blocks):05d}.safetensors"
        tensors = {name: _read(file, file.tensors[source], config) for name, source in names.items()}
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
        yield ImportedFile(shard, encode(tensors))
        del tensors
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    ids = token_ids(file.metadata)
    yield ImportedFile("model.safetensors.index.json", [_json(index)])
    yield ImportedFile("config.json", [_json({**config, **ids})])
    yield ImportedFile("generation_config.json", [_json(ids)])
    for name, text in texts.items():
        yield ImportedFile(name, [text])


def _config(file: GgufFile, table: str) -> dict[str, Any]:
    """config.json of the llama architecture (transformers.LlamaConfig)."""
    meta = file.metadata
    kind = meta.get("general.architecture")
    if kind != "llama":
        _refuse(file, table, f'is of architecture "{kind}"; only "llama" can be imported')
    if meta.get("split.count", 0) not in (0, 1):
        _refuse(file, table, "is one part of a split GGUF; merge the parts first")
    if meta.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors:
        _refuse(file, table, "scales its rotary embedding, which cannot be imported")
    if meta.get("llama.expert_count", 0):
        _refuse(file, table, "is a mixture of experts, which cannot be imported")

    def need(name: str) -> Any:
        value = meta.get(f"llama.{name}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            _refuse(file, table, f"has no usable llama.{name} ({value!r})")
        return value

    hidden, heads = need("embedding_length"), need("attention.head_count")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        _refuse(file, table, 'lacks tensor "token_embd.weight"')
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "head_dim": meta.get("llama.attention.key_length", hidden // heads),
        "rms_norm_eps": round(need("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": meta.get("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": need("context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "attention_bias": any(name.endswith("attn_q.bias") for name in file.tensors),
        "mlp_bias": any(name.endswith("ffn_up.bias") for name in file.tensors),
        "rope_scaling": None,
        "torch_dtype": "float16",
    }


def _blocks(file: GgufFile, config: dict[str, Any], table: str) -> list[dict[str, str]]:
    """Per shard: Hugging Face name -> GGUF name. Every tensor is placed, none is missing."""
    layers = config["num_hidden_layers"]
    inner: list[dict[str, str]] = [{} for _ in range(layers)]
    outer: dict[str, dict[str, str]] = {}
    for source in file.tensors:
        match = _BLOCK.fullmatch(source)
        if source in _OUTER:
            outer[source] = {_OUTER[source]: source}
        elif match and match[2] in _INNER and int(match[1]) < layers:
            inner[int(match[1])][f"model.layers.{match[1]}.{_INNER[match[2]]}.{match[3]}"] = source
        else:
            _refuse(file, table, f'holds tensor "{source[:80]}", which a llama model does not have')
    for number, names in enumerate(inner):
        for part in _INNER.values():
            if f"model.layers.{number}.{part}.weight" not in names:
                _refuse(file, table, f"lacks {part} of block {number}")
    if "output_norm.weight" not in outer:
        _refuse(file, table, 'lacks tensor "output_norm.weight"')
    return [outer["token_embd.weight"], *inner, *(outer[n] for n in list(_OUTER)[1:] if n in outer)]


def _read(file: GgufFile, tensor: GgufTensor, config: dict[str, Any]) -> RawTensor:
    values = dequantize(file, tensor)
    if tensor.name.endswith("attn_q.weight"):
        values = _unpermute(values, config["num_attention_heads"])
    elif tensor.name.endswith("attn_k.weight"):
        values = _unpermute(values, config["num_key_value_heads"])
    half = np.ascontiguousarray(values.astype(np.float16))
    return RawTensor("F16", tuple(half.shape), memoryview(half.data).cast("B"))


def _unpermute(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """GGUF stores q and k rows interleaved for "traditional" rotary embedding (llama.cpp's permute)."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def dequantize(file: GgufFile, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """A tensor's values in float32: q * d + m, as ggml defines each type."""
    data = np.fromfile(file.path, np.uint8, tensor.nbytes, offset=tensor.start)
    match tensor.type:
        case "F32":
            flat = data.view("<f4")
        case "F16":
            flat = data.view("<f2").astype(np.float32)
        case "BF16":
            flat = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case "Q8_0":
            rows = data.reshape(-1, 34)
            flat = rows[:, 2:].view(np.int8).astype(np.float32) * _half(rows, 0)
        case "Q4_0":
            rows = data.reshape(-1, 18)
            flat = (_nibbles(rows[:, 2:]) - np.float32(8)) * _half(rows, 0)
        case _:
            rows = data.reshape(-1, 20)
            flat = _nibbles(rows[:, 4:]) * _half(rows, 0) + _half(rows, 2)
    return flat.reshape(tensor.shape)


def _half(rows: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float32]:
    """The float16 at a byte offset of each row, as a float32 column."""
    return np.ascontiguousarray(rows[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """16 bytes to 32 values: all low halves first, then all high halves."""
    return np.concatenate([packed & 0xF, packed >> 4], axis=1).astype(np.float32)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _refuse(file: GgufFile, table: str, what: str) -> NoReturn:
    raise SourceInvalid(table=table, path=file.path, what=what)
