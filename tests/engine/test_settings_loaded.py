"""Settings on top of an adapter and of bases in other types; and that mlx_lm loads and runs the outcome."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.engine.variant_config import Unquantizable
from builder.spec.types import DTYPES, Override, Quantization, Variant
from builder.weights.shards import encode
from tests.architectures import REGISTRY, Architecture, build, checkpoint, dense, moe
from tests.comparison import Made, arguments, converted, differences, fused, lora, quiet, read, stream
from tests.reference import reference

WIDE = {"hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 128}
BASES: dict[str, Architecture] = {
    "bfloat16": dense("qwen3", **WIDE),
    "float16": dense("llama", **WIDE, dtype="float16", tie_word_embeddings=True),
    "float32": dense("llama", **WIDE, dtype="float32", attention_bias=True),
    "uncast": dense("llama", **WIDE, dtype_key="dtype"),  # mlx_lm.convert does not cast these unasked
    "experts": moe("qwen3_moe", **WIDE),
    "normed": moe("bailing_moe", **WIDE),
}
VARIANTS = [
    *(Variant(f"{b}bit{g}", quantization=Quantization(b, g)) for b, g in ((2, 128), (4, 64), (5, 32))),
    *(Variant(f"4bit_{dtype}", dtype=dtype, quantization=Quantization(4, 64)) for dtype in DTYPES),
    *(Variant(f"mxfp8_{dtype}", dtype=dtype, quantization=Quantization(8, 32, "mxfp8")) for dtype in DTYPES),
    *(Variant(f"mixed_{dtype}", dtype=dtype, recipe="mixed_3_6") for dtype in DTYPES),
    *(Variant(dtype, dtype=dtype) for dtype in DTYPES),
    Variant("own"),
]
Adapted = Callable[[str], tuple[Path, dict[str, Made]]]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """The base with a LoRA in it by mlx_lm.fuse, and all variants of the two from one pass of ours."""
    found: dict[str, tuple[Path, dict[str, Made]]] = {}

    def make(name: str) -> tuple[Path, dict[str, Made]]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            base = checkpoint(folder / "base", BASES[name])
            adapter = lora(base, inspect(base), folder / "adapter")
            found[name] = fused(base, adapter, folder / "fused"), stream(base, adapter, VARIANTS)
        return found[name]

    return make


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_equal_to_fuse_and_convert(adapted: Adapted, base: str, variant: Variant, tmp_path: Path) -> None:
    source, ours = adapted(base)
    assert differences(ours[variant.name], converted(source, variant, tmp_path / "out")) == []


# -- overrides on top of everything else ---------------------------------------------------------------------

OVERRIDES: dict[str, tuple[Override, ...]] = {
    "blocks": (Override("model.layers.*.mlp.*", Quantization(6, 32)),),
    "modes": (Override("*.q_proj", Quantization(8, 32, "mxfp8")), Override("*.k_proj", Quantization(3, 64))),
    "off": (Override("model.embed_tokens", None), Override("*.0.*", None)),
    "all": (Override("*", Quantization(8, 64)),),
}
UNDER: dict[str, Variant] = {
    "affine": Variant("v", quantization=Quantization(4, 64)),
    "mxfp4": Variant("v", quantization=Quantization(4, 32, "mxfp4")),
    "recipe": Variant("v", recipe="mixed_4_6", group_size=64),
}


@pytest.mark.parametrize("base", ["bfloat16", "experts"])
@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("case", OVERRIDES)
def test_overrides(base: str, under: str, case: str, tmp_path: Path) -> None:
    """Equal to mlx_lm.convert with a predicate that says the same, and mlx_lm runs it."""
    folder = checkpoint(tmp_path / "base", BASES[base])
    variant = replace(UNDER[under], overrides=OVERRIDES[case])
    ours = stream(folder, None, [variant])["v"]
    assert differences(ours, by_predicate(folder, variant, tmp_path / "theirs")) == []
    assert runs(ours, tmp_path / "ours")


def by_predicate(folder: Path, variant: Variant, out: Path) -> Made:
    """mlx_lm.convert with a callable: overrides, then the recipe or the model's own rule."""
    from mlx_lm.convert import mixed_quant_predicate_builder

    model = build(json.loads((folder / "config.json").read_text()))
    if variant.recipe:
        rule: Any = mixed_quant_predicate_builder(variant.recipe, model, variant.group_size)
    else:
        rule = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: Any) -> Any:
        for override in variant.overrides:
            if fnmatchcase(path, override.pattern):
                how = override.quantization
                return how and {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
        return rule(path, module)

    with quiet():
        reference(folder, None, out, **{**arguments(variant), "quant_predicate": predicate})
    return read(out)


def runs(made: Made, folder: Path) -> bool:
    """Whether mlx_lm loads these tensors with this config.json, and computes something finite."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.config))
    (folder / "model.safetensors").write_bytes(b"".join(encode(made.tensors)))
    model, _ = load_base(folder)
    model.set_dtype(mx.float32)  # the CPU has no expert products in other types
    return math.isfinite(mx.abs(model(mx.array([[1, 2, 3]]))).max().item())


def test_a_model_that_mlx_lm_cannot_quantize(tmp_path: Path) -> None:
    """Its own to_quantized knows no modes; said before a weight is read, and a cast works all the same."""
    afm7 = next(architecture for architecture in REGISTRY if architecture.name == "afm7")
    base = checkpoint(tmp_path / "base", afm7)
    with pytest.raises(Unquantizable, match="4bit64: mlx-lm cannot quantize this model: .*'mode'"):
        stream(base, None, [VARIANTS[1]])
    assert stream(base, None, [Variant("f16", dtype="float16")])["f16"].tensors


# -- the comparison itself -----------------------------------------------------------------------------------


def test_one_changed_bit_is_noticed(adapted: Adapted) -> None:
    made = adapted("bfloat16")[1]["4bit64"]
    for name, tensor in made.tensors.items():
        data = bytearray(tensor.data)
        data[len(data) // 2] ^= 1
        changed = replace(made, tensors={**made.tensors, name: replace(tensor, data=bytes(data))})
        assert differences(made, changed) == [f"{name}: other bytes"]


def test_one_changed_word_in_config_is_noticed(adapted: Adapted) -> None:
    made = adapted("bfloat16")[1]["4bit64"]
    assert differences(made, replace(made, config={**made.config, "quantization": {"bits": 5}})) != []
