"""Every architecture again, with DoRA, with a full fine-tune and on a dequantized base. Minutes, so slow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.engine.loading import NotDequantizable, load_base
from builder.spec.types import Quantization, Variant
from tests.architectures import REGISTRY, Architecture, checkpoint
from tests.comparison import arguments, converted, differences, fused, lora, lora_shapes, quiet, stream
from tests.engine.test_adapters import fused_dequantized
from tests.reference import reference

pytestmark = pytest.mark.slow

VARIANTS = [
    Variant("5bit", quantization=Quantization(5, 32)),
    Variant("nvfp4", quantization=Quantization(4, 16, "nvfp4")),
    Variant("f16", dtype="float16"),
    Variant("own"),
]
PLAIN = [v for v in VARIANTS if not v.is_quantized]
# DoRA is fused to float32: where mlx_lm.convert finds no dtype in config.json it stays that (see
# test_adapters_fused). A head that is normalised again and a packed base have tests of their own.
LISTED = [
    a
    for a in REGISTRY
    if not a.changed_again
    and a.dtype_key == "torch_dtype"
    and a.model_type not in ("olmo", "prism_hadamard_qwen35")
]


def random(seed: int, shape: tuple[int, ...], scale: float = 0.05) -> mx.array:
    return mx.random.normal(shape, scale=scale, key=mx.random.key(seed))


def save(folder: Path, tensors: Mapping[str, mx.array], kind: str) -> Path:
    """An adapter in mlx-lm's layout."""
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tensors))
    keys = sorted({name.rpartition(".")[0] for name in tensors})
    settings = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def half_of_all(base: Path) -> dict[str, mx.array]:
    """Every second parameter, of whatever module."""
    model, _ = load_base(base)
    return {
        name: (random(number, array.shape) + (array.ndim == 1)).astype(array.dtype)
        for number, (name, array) in enumerate(tree_flatten(model.parameters()))
        if number % 2 and mx.issubdtype(array.dtype, mx.floating)
    }


def directions(base: Path) -> dict[str, mx.array]:
    """DoRA on two thirds of the layers that mlx-lm can give one."""
    model, _ = load_base(base)
    tensors = {}
    for number, (path, module) in enumerate(model.named_modules()):
        if number % 3 and type(module) in (nn.Linear, nn.Embedding):
            for part, shape in lora_shapes(module, 4).items():
                tensors[f"{path}.{part}"] = random(number, shape)
            tensors[f"{path}.m"] = mx.abs(random(number, module.weight.shape[:1], 1.0)) + 0.5
    return tensors


def assert_same(
    ours: Mapping[str, Any], source: Path, variants: list[Variant], architecture: Architecture, out: Path
) -> None:
    for variant in variants:
        found = differences(ours[variant.name], converted(source, variant, out / variant.name))
        assert found == [], (architecture.name, variant.name)


def possible(architecture: Architecture) -> list[Variant]:
    """What mlx-lm can make: not every width of these tiny models can be quantized as the model asks."""
    if architecture.fails:
        return PLAIN
    return [v for v in VARIANTS if v.name != "nvfp4" or architecture.model_type != "rwkv7"]


@pytest.mark.parametrize("kind", ["full", "dora"])
@pytest.mark.parametrize("architecture", LISTED, ids=lambda a: a.name)
def test_adapted(architecture: Architecture, kind: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    tensors = half_of_all(base) if kind == "full" else directions(base)
    adapter = save(tmp_path / "adapter", tensors, kind)
    variants = possible(architecture)
    ours = stream(base, adapter, variants)
    assert_same(ours, fused(base, adapter, tmp_path / "fused"), variants, architecture, tmp_path)


@pytest.mark.parametrize(
    "architecture", [a for a in LISTED if not a.fails and not a.original], ids=lambda a: a.name
)
def test_dequantized(architecture: Architecture, tmp_path: Path) -> None:
    plain, base = checkpoint(tmp_path / "plain", architecture), tmp_path / "packed"
    with quiet():
        reference(plain, None, base, **arguments(Variant("4bit", quantization=Quantization(4, 64))))
    try:
        structure = inspect(base, dequantize=True)
    except NotDequantizable as error:
        assert "embed_q" in str(error) or "unembed_out" in str(error)  # the latent attention of MLA
        return
    adapter = lora(plain, structure, tmp_path / "adapter")
    variants = possible(architecture)
    ours = stream(base, adapter, variants, dequantize=True)
    source = fused_dequantized(base, adapter, tmp_path / "fused")
    assert_same(ours, source, variants, architecture, tmp_path)
