"""Imports a GGUF of the llama family as a directory in Hugging Face layout, one block in memory at a time.

Weights become float16, bit-identical to what mx.load and mx.dequantize give. Tests compare them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from builder.errors import SourceInvalid
from builder.sources.gguf.config import ROPE_FREQUENCIES, llama_config, llama_shapes
from builder.sources.gguf.header import GgufFile, GgufTensor, read_gguf_header
from builder.sources.gguf.names import INNER, OUTER
from builder.sources.gguf.tokenizer import Unsupported, token_ids, tokenizer_files
from builder.sources.gguf.values import read_half
from builder.weights.shards import RawTensor, encode


@dataclass(frozen=True)
class ImportedFile:
    """One file of the directory: its name, and its bytes as chunks in order."""

    name: str
    chunks: Sequence[bytes | memoryview]


def import_gguf(path: Path, table: str) -> Iterator[ImportedFile]:
    """Yields the files of a directory in Hugging Face layout, one after the other.

    `table` is the declaration named in errors. Raises SourceMissing. Raises SourceInvalid for a file that is
    not a valid GGUF, for another architecture, for a tensor that is missing, unknown or of a wrong shape, and
    for a tokenizer that cannot be written.
    """
    file = read_gguf_header(path, table)
    config = llama_config(file, table)
    try:
        texts = tokenizer_files(file.metadata, config["max_position_embeddings"], config["vocab_size"])
        ids = token_ids(file.metadata)
    except Unsupported as error:
        _refuse(file, table, str(error))
    blocks = _blocks(file, config, table)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(blocks, start=1):
        shard = f"model-{number:05d}-of-{len(blocks):05d}.safetensors"
        tensors = {name: _read(file, file.tensors[source], config, table) for name, source in names.items()}
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
        yield ImportedFile(shard, encode(tensors))
        del tensors
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    yield ImportedFile("model.safetensors.index.json", [_json(index)])
    yield ImportedFile("config.json", [_json({**config, **ids})])
    yield ImportedFile("generation_config.json", [_json(ids)])
    for name, text in texts.items():
        yield ImportedFile(name, [text])


def _blocks(file: GgufFile, config: dict[str, Any], table: str) -> list[dict[str, str]]:
    """For each shard: Hugging Face name -> GGUF name. Raises SourceInvalid unless all tensors match."""
    outer, inner = llama_shapes(config)
    layers = config["num_hidden_layers"]
    if layers > len(file.tensors):  # a false count of blocks must not fill the memory
        _refuse(file, table, f"holds {len(file.tensors)} tensors, too few for {layers} blocks")
    shapes = dict(outer)
    names: list[dict[str, str]] = [{} for _ in range(layers)]
    for layer in range(layers):
        for part, shape in inner.items():
            module, _, leaf = part.partition(".")
            source = f"blk.{layer}.{part}"
            shapes[source] = shape
            names[layer][f"model.layers.{layer}.{INNER[module]}.{leaf}"] = source
    _check_shapes(file, shapes, table)
    first, *last = [{OUTER[source]: source} for source in OUTER if source in outer]
    return [first, *names, *last]


def _check_shapes(file: GgufFile, shapes: dict[str, tuple[int, ...]], table: str) -> None:
    for name in file.tensors:
        if name not in shapes and name != ROPE_FREQUENCIES:
            _refuse(file, table, f'holds tensor "{name[:80]}", which a llama model does not have')
    for name, shape in shapes.items():
        if name not in file.tensors:
            _refuse(file, table, f'lacks tensor "{name}"')
        if (found := file.tensors[name].shape) != shape:
            _refuse(file, table, f'has tensor "{name}" of shape {found}, expected {shape}')


def _read(file: GgufFile, tensor: GgufTensor, config: dict[str, Any], table: str) -> RawTensor:
    half = read_half(file, tensor, table)
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    if (module := tensor.name.split(".")[-2]) in heads:
        half = _unpermute(half, config[heads[module]])
    return RawTensor("F16", tuple(half.shape), memoryview(half.data).cast("B"))


def _unpermute(rows: npt.NDArray[np.float16], heads: int) -> npt.NDArray[np.float16]:
    """Undoes llama.cpp's permute, which interleaves the rows of q and k, and their biases, for rotation."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _refuse(file: GgufFile, table: str, what: str) -> NoReturn:
    raise SourceInvalid(table=table, path=file.path, what=what)
