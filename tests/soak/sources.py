"""What the small world is made of: a tiny Llama as a folder and as a GGUF, twice each, adapters and texts.

All bases have the same shapes, so nothing but the weights tells one from another that stands in its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from builder.sources.gguf.importing import import_gguf
from tests.sources.gguf.test_importing import META, PARTS, TOKENS, Stored, gguf
from tests.tiny import random, save_adapter

HIDDEN, INNER, HEADS, KV, LAYERS = 64, 128, 4, 2, 2
BLOCKS = LAYERS + 2  # embedding and final norm
SETTINGS: Mapping[str, Any] = {"llama.block_count": LAYERS, "llama.feed_forward_length": INNER}


def write_gguf(file: Path, seed: int) -> Path:
    """A GGUF of random weights in F16."""
    drawn = np.random.default_rng(seed)

    def stored(*shape: int) -> Stored:
        return "F16", shape, (drawn.normal(size=shape) / 8).astype("<f2").tobytes()

    tensors = {"token_embd.weight": stored(len(TOKENS), HIDDEN), "output_norm.weight": stored(HIDDEN)}
    for layer in range(LAYERS):
        for part, (_, shape) in PARTS.items():
            wide = tuple(INNER if size == 96 else size for size in shape)
            tensors[f"blk.{layer}.{part}.weight"] = stored(*wide)
    file.write_bytes(gguf({**META, **SETTINGS}, tensors))
    return file


def write_folder(folder: Path, seed: int) -> Path:
    """The same model as a folder in Hugging Face layout."""
    folder.mkdir(parents=True)
    file = write_gguf(folder.with_name(f"{folder.name}.tmp"), seed)
    for imported in import_gguf(file, "base.x"):
        (folder / imported.name).write_bytes(b"".join(bytes(chunk) for chunk in imported.chunks))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    file.unlink()
    return folder


def edit_folder(source: Path, folder: Path, what: str) -> Path:
    """A copy of a folder base in which a person edited one small file."""
    shutil.copytree(source, folder)
    match what:
        case "eos":
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
        case "config":
            _set(folder / "config.json", eos_token_id=5)
        case "chat":
            (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
        case "vocabulary":
            words = json.loads((folder / "tokenizer.json").read_text())
            (folder / "tokenizer.json").write_text(json.dumps(words, indent=1))
        case "dtype":  # under two keys, of which one decides: both change once a variant asks for a dtype
            _set(folder / "config.json", torch_dtype="float16", dtype="bfloat16")
        case "theta":  # read by the model, but not for its weights
            _set(folder / "config.json", rope_theta=12345.0)
        case _:
            raise AssertionError(what)
    return folder


def _set(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def write_adapter(folder: Path, seed: int, layers: tuple[int, ...]) -> Path:
    folder.mkdir(parents=True)
    tensors = {}
    for layer in layers:
        for number, (path, out, wide) in enumerate(
            (("self_attn.q_proj", HIDDEN, HIDDEN), ("mlp.down_proj", HIDDEN, INNER))
        ):
            at, first = f"model.layers.{layer}.{path}", seed + 10 * layer + 4 * number
            tensors[f"{at}.lora_a"] = random(first, wide, 2, scale=wide**-0.5)
            tensors[f"{at}.lora_b"] = random(first + 1, 2, out, scale=0.3)
    mx.eval(tensors)
    save_adapter(folder, tensors, rank=2)
    return folder
