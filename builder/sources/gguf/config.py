"""Makes config.json for a GGUF of the llama family (transformers.LlamaConfig), and lists its tensors.

A setting that mlx-lm's llama does not have is refused, because ignoring the setting would make another model.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, NoReturn

from builder.errors import SourceInvalid
from builder.sources.gguf.header import GgufFile

ROPE_FREQUENCIES = "rope_freqs.weight"
_USED = frozenset(
    f"llama.{name}"
    for name in (
        "embedding_length", "feed_forward_length", "block_count", "context_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
        "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
    )
)  # fmt: skip
_MAX_COUNT = 1 << 31
_Shapes = dict[str, tuple[int, ...]]


def llama_config(file: GgufFile, table: str) -> dict[str, Any]:
    """config.json without the token ids. Raises SourceInvalid for a model that cannot be imported."""
    _check_kind(file, table)
    hidden, heads = _count(file, table, "embedding_length"), _count(file, table, "attention.head_count")
    groups = _count(file, table, "attention.head_count_kv", heads)
    if heads % groups:
        _refuse(file, table, f"has {heads} heads and {groups} key-value heads")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        _refuse(file, table, 'lacks tensor "token_embd.weight"')
    dims = _head_dims(file, table, hidden, heads)
    base = _positive(file, table, "rope.freq_base", 10000.0)
    names = {name.split(".")[-2] for name in file.tensors if name.endswith(".bias")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _count(file, table, "feed_forward_length"),
        "num_hidden_layers": _count(file, table, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": dims,
        "rms_norm_eps": round(_positive(file, table, "attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": base,
        "max_position_embeddings": _count(file, table, "context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "attention_bias": any(name.startswith("attn_") and name != "attn_norm" for name in names),
        "mlp_bias": any(name in ("ffn_gate", "ffn_up", "ffn_down") for name in names),
        "rope_scaling": _rope_scaling(file, table, dims, base),
        "torch_dtype": "float16",
    }


def llama_shapes(config: dict[str, Any]) -> tuple[_Shapes, _Shapes]:
    """Names and shapes (rows first) of the outer tensors, and of those in one block, without "blk.N."."""
    hidden, inner, dims = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, keys = config["num_attention_heads"] * dims, config["num_key_value_heads"] * dims
    outer: _Shapes = {
        "token_embd.weight": (config["vocab_size"], hidden),
        "output_norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        outer["output.weight"] = (config["vocab_size"], hidden)
    attention = {"attn_q": (query, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
    attention["attn_output"] = (hidden, query)
    mlp = {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    block: _Shapes = {"attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,)}
    for matrices, biased in ((attention, config["attention_bias"]), (mlp, config["mlp_bias"])):
        for name, shape in matrices.items():
            block[f"{name}.weight"] = shape
            if biased:
                block[f"{name}.bias"] = shape[:1]
    return outer, block


def _check_kind(file: GgufFile, table: str) -> None:
    meta = file.metadata
    kind = meta.get("general.architecture")
    if kind != "llama":
        _refuse(file, table, f'is of architecture "{str(kind)[:80]}"; only "llama" can be imported')
    if meta.get("split.count", 0) not in (0, 1):
        _refuse(
            file,
            table,
            "is one part of a split GGUF",
            "Merge the parts first: llama-gguf-split --merge first-part.gguf whole.gguf",
        )
    if meta.get("llama.expert_count", 0):
        _refuse(file, table, "is a mixture of experts, which cannot be imported")
    for key, value in meta.items():
        harmless = key in _USED or key == "llama.tensor_data_layout" or value in (0, False)
        if key.startswith("llama.") and not harmless:
            _refuse(file, table, f"sets {key[:80]} = {reprlib.repr(value)}, which cannot be imported")


def _head_dims(file: GgufFile, table: str, hidden: int, heads: int) -> int:
    """Elements per head. Raises SourceInvalid unless all are rotated and values have as many as keys."""
    if "llama.attention.key_length" not in file.metadata and hidden % heads:
        _refuse(file, table, f"has {heads} heads over {hidden} elements")
    dims = _count(file, table, "attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := _count(file, table, name, dims)) != dims:
            _refuse(file, table, f"has heads of {dims} elements, but llama.{name} = {other}")
    if dims % 2:
        _refuse(file, table, f"has heads of {dims} elements, which cannot be rotated in pairs")
    return dims


def _rope_scaling(file: GgufFile, table: str, dims: int, base: float) -> dict[str, Any] | None:
    """`rope_scaling` of config.json: linear, llama3 (from the factors that the GGUF stores), or None."""
    meta = file.metadata
    kind = meta.get("llama.rope.scaling.type", "linear")  # llama.cpp's default
    names = ("rope.scaling.factor", "rope.scale_linear")  # the newer name first. 0 means unscaled
    given = [name for name in names if meta.get(f"llama.{name}", 0) != 0]
    factor = _positive(file, table, given[0]) if given else 1.0
    linear = kind == "linear" and factor != 1
    if kind not in ("none", "linear") or (linear and ROPE_FREQUENCIES in file.tensors):
        _refuse(file, table, "scales its rotary embedding in a way that cannot be imported")
    if ROPE_FREQUENCIES in file.tensors:
        return _llama3(file, table, dims, base)
    return {"rope_type": "linear", "factor": factor} if linear else None


def _llama3(file: GgufFile, table: str, dims: int, base: float) -> dict[str, Any] | None:
    """`rope_scaling` in the manner of Llama 3, or None if the GGUF scales nothing. Raises SourceInvalid.

    A GGUF keeps only the divisor of each frequency, float32 [dims / 2]. The factor is the largest divisor.
    The factor and Llama 3's other constants must give all divisors again.
    """
    from builder.sources.gguf.values import read_single

    tensor = file.tensors[ROPE_FREQUENCIES]
    if tensor.shape != (dims // 2,) or tensor.type != "F32":
        _refuse(file, table, f'has tensor "{ROPE_FREQUENCIES}" of a wrong shape or type')
    stored = [float(value) for value in read_single(file, tensor, table)]
    factor, low, high, context = max(stored), 1.0, 4.0, 8192
    if all(value == 1.0 for value in stored):
        return None
    for index, value in enumerate(stored):
        turns = context / (2 * math.pi * base ** (2 * index / dims))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        expected = 1 / ((1 - smooth) / factor + smooth) if factor > 0 else math.nan
        if not math.isclose(value, expected, rel_tol=1e-4):
            _refuse(file, table, "scales its rotary embedding in a way that cannot be imported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _count(file: GgufFile, table: str, name: str, default: int | None = None) -> int:
    value = file.metadata.get(f"llama.{name}", default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_COUNT:
        _refuse(file, table, f"has no usable llama.{name} ({reprlib.repr(value)})")
    return value


def _positive(file: GgufFile, table: str, name: str, default: float | None = None) -> float:
    value = file.metadata.get(f"llama.{name}", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        _refuse(file, table, f"has no usable llama.{name} ({reprlib.repr(value)})")
    return float(value)


def _refuse(file: GgufFile, table: str, what: str, hint: str | None = None) -> NoReturn:
    raise SourceInvalid(table=table, path=file.path, what=what, hint=hint)
