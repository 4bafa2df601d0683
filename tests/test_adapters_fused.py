"""Every kind of adapter, fused as mlx_lm fuses it, bit for bit; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from builder.engine.block import NotFinite
from builder.engine.inspect import inspect
from builder.engine.loading import AdapterMismatch, LoadedAdapter, NotDequantizable, load_base
from builder.errors import SourceInvalid
from builder.spec import MODES, Quantization, Variant
from tests.architectures import Architecture, checkpoint, dense, moe
from tests.comparison import (
    Made,
    arguments,
    converted,
    differences,
    fused,
    loaded,
    lora,
    lora_shapes,
    quiet,
    read,
    stream,
)
from tests.reference import fuse, reference

VARIANTS = [
    Variant("4bit", quantization=Quantization(4, 64)),
    Variant("mxfp4", quantization=Quantization(4, 32, "mxfp4")),
    Variant("f16", dtype="float16"),
    Variant("own"),
]
DENSE, MOE = dense("qwen3"), moe("qwen3_moe")
HALF = dense("llama", dtype="float16", attention_bias=True, mlp_bias=True)
SINGLE = dense("llama", dtype="float32")
TIED = dense("qwen3", tie_word_embeddings=True)

Tensors = dict[str, mx.array]


def random(seed: int, shape: tuple[int, ...], scale: float = 0.05) -> mx.array:
    return mx.random.normal(shape, scale=scale, key=mx.random.key(seed))


def save(folder: Path, tensors: Mapping[str, mx.array], kind: str, **parameters: Any) -> Path:
    """An adapter in mlx-lm's layout."""
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tensors))
    parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0, **parameters}
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def low_rank(
    base: Path, wanted: Callable[[str], bool], *, rank: int = 4, dora: bool = False, dtype: Any = mx.float32
) -> Tensors:
    """lora_a and lora_b (and m) for the paths of a model that are wanted."""
    model, _ = load_base(base)
    tensors: Tensors = {}
    for path, module in model.named_modules():
        if not wanted(path) or not hasattr(module, "to_quantized"):
            continue
        for part, shape in lora_shapes(module, rank).items():
            tensors[f"{path}.{part}"] = random(len(tensors), shape).astype(dtype)
        if dora:
            tensors[f"{path}.m"] = mx.abs(random(len(tensors), (module.weight.shape[0],), 1.0)) + 0.5
    return tensors


def relative(tensors: Mapping[str, mx.array]) -> list[str]:
    """The `keys` of an mlx-lm adapter over blocks: paths inside a block."""
    return sorted({name.rpartition(".")[0].split(".", 3)[3] for name in tensors})


def attention(path: str) -> bool:
    return "self_attn" in path and path.endswith(("q_proj", "v_proj", "o_proj"))


CASES: dict[str, tuple[Architecture, Callable[[Path], tuple[Tensors, str, dict[str, Any]]]]] = {}


def case(
    name: str, architecture: Architecture
) -> Callable[[Callable[[Path], tuple[Tensors, str, dict[str, Any]]]], None]:
    def note(make: Callable[[Path], tuple[Tensors, str, dict[str, Any]]]) -> None:
        CASES[name] = (architecture, make)

    return note


def over(wanted: Callable[[str], bool], kind: str = "lora", **how: Any) -> Any:
    """An adapter over the wanted paths, with the keys in the form that mlx_lm.lora writes them."""

    def make(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
        tensors = low_rank(base, wanted, dora=kind == "dora", **how)
        inside = all(".layers." in name for name in tensors)
        keys = relative(tensors) if inside else sorted({n.rpartition(".")[0] for n in tensors})
        return tensors, kind, {"keys": keys, "rank": how.get("rank", 4)}

    return make


def everything(_: str) -> bool:
    return True


case("LoRA", DENSE)(over(attention))
case("LoRA on everything", DENSE)(over(everything))
case("LoRA, rank 1", DENSE)(over(attention, rank=1))
case("LoRA, rank above the width", DENSE)(over(attention, rank=80))
case("LoRA in bfloat16", DENSE)(over(attention, dtype=mx.bfloat16))
case("LoRA in float16", DENSE)(over(attention, dtype=mx.float16))
case("LoRA beside biases, float16", HALF)(over(everything))
case("LoRA in float32 on float32", SINGLE)(over(everything))
case("LoRA on experts", MOE)(over(lambda path: "switch_mlp" in path))
case("LoRA on experts, bfloat16", MOE)(over(lambda path: "switch_mlp" in path, dtype=mx.bfloat16))
case("LoRA on routers", MOE)(over(lambda path: path.endswith("mlp.gate")))
case("LoRA on a tied embedding", TIED)(over(lambda path: path == "model.embed_tokens"))
case("LoRA on embedding and head", DENSE)(over(lambda path: path in ("model.embed_tokens", "lm_head")))
case("DoRA", DENSE)(over(attention, "dora"))
case("DoRA beside biases, float16", HALF)(over(attention, "dora"))
case("DoRA on an embedding", TIED)(over(lambda path: path == "model.embed_tokens", "dora"))


@case("full, one block", DENSE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda name: ".layers.1." in name), "full", {}


@case("full, everything, float32", DENSE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda _: True, mx.float32), "full", {}


@case("full, experts", MOE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda name: "switch_mlp" in name), "full", {}


def full(base: Path, wanted: Callable[[str], bool], dtype: Any = mx.bfloat16) -> Tensors:
    model, _ = load_base(base)
    from mlx.utils import tree_flatten

    arrays = dict(tree_flatten(model.parameters()))
    chosen = [name for name in sorted(arrays) if wanted(name)]
    return {name: random(n, arrays[name].shape).astype(dtype) for n, name in enumerate(chosen)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "mlx"])
def test_equal_to_fuse_and_convert(name: str, compiled: bool, tmp_path: Path) -> None:
    architecture, make = CASES[name]
    base = checkpoint(tmp_path / "base", architecture)
    tensors, kind, parameters = make(base)
    assert tensors
    adapter = save(tmp_path / "adapter", tensors, kind, **parameters)
    source = fused(base, adapter, tmp_path / "fused")
    ours = stream(base, adapter, VARIANTS, compiled=compiled)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []
    plain = stream(base, None, VARIANTS[:1])["4bit"]
    assert differences(ours["4bit"], plain) != []  # it changes something
