"""Every way to quantize and to cast gives what mlx_lm.convert gives; overrides, what its predicate gives."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from builder.engine.inspect import inspect
from builder.plan.quantization import resolve
from builder.spec.quantizers import MODES, RECIPES
from builder.spec.types import DTYPES, Override, Quantization, Variant
from tests import reference
from tests.architectures import YARN, checkpoint, dense, hybrid, moe, ssm
from tests.comparison import Made, arguments, differences, quiet, read, stream

# Wide enough that the largest group divides something, and has a path that no group but 32 divides.
WIDE = {"hidden_size": 128, "moe_intermediate_size": 128}
LOW_RANKS = {f"{part}_low_rank_dim": 64 for part in ("a", "v", "gate", "decay")}
MODELS = {
    "dense": dense("llama", hidden_size=128, intermediate_size=288, head_dim=32, attention_bias=True),
    "moe": moe("qwen3_moe", **WIDE, head_dim=32),
    "latent": moe("deepseek_v2", **WIDE, kv_lora_rank=128, q_lora_rank=128, rope_scaling=YARN),
    "kept": hybrid("qwen3_5_moe", wraps=True, full_attention_interval=2, hidden_size=128),
    "eight": ssm("rwkv7", **LOW_RANKS, head_dim=32),
}
AFFINE = [
    Variant(f"{bits}bit{group}", quantization=Quantization(bits, group))
    for bits in MODES["affine"][0]
    for group in MODES["affine"][1]
]
FLOATING = [
    Variant(mode, quantization=Quantization(bits, group, mode))
    for mode, (_, _, bits, group) in MODES.items()
    if mode != "affine"
]
MIXED = [
    Variant(f"{recipe}_{group}", recipe=recipe, group_size=group)
    for recipe in RECIPES
    for group in MODES["affine"][1]
]
CASTS = [Variant(dtype, dtype=dtype) for dtype in DTYPES]
CAST_AND_QUANTIZED = [
    Variant(f"{dtype}_{how.mode}{how.bits}", dtype=dtype, quantization=how)
    for dtype in DTYPES
    for how in (Quantization(5, 32), Quantization(4, 32, "mxfp4"))
]
ALL = [*AFFINE, *FLOATING, *MIXED, *CASTS, *CAST_AND_QUANTIZED]


def override(pattern: str, *how: Any) -> Override:
    return Override(pattern, Quantization(*how) if how else None)


OVERRIDES = {
    "bits": (override("lm_head", 8, 64),),
    "group": (override("model.layers.0.*", 4, 32), override("*.down_proj", 6, 32)),
    "left alone": (override("*.k_proj"), override("model.embed_tokens")),
    "first wins": (override("*.q_proj", 3, 64), override("*_proj", 8, 32), override("*")),
    "mode": (override("*.v_proj", 4, 16, "nvfp4"), override("*.o_proj", 8, 32, "mxfp8")),
    "nothing": (override("nowhere", 8, 64),),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Made]]]:
    """The checkpoint of one of MODELS, and all variants of it from one pass."""

    @cache
    def make(name: str) -> tuple[Path, dict[str, Made]]:
        base = checkpoint(tmp_path_factory.mktemp(name), MODELS[name])
        mixed = not inspect(base).recipe_errors
        return base, stream(base, None, [variant for variant in ALL if mixed or not variant.recipe])

    return make


def theirs(base: Path, variant: Variant, out: Path) -> Made:
    """One variant by mlx_lm.convert, its overrides as a predicate around the model's own."""
    how = arguments(variant)
    if variant.overrides:
        how["quant_predicate"] = _predicate(variant)
    with quiet():
        reference.reference(base, None, out, **how)
    return read(out)


def _predicate(variant: Variant) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    def decide(path: str, _: nn.Module) -> bool | dict[str, Any]:
        for rule in variant.overrides:
            if fnmatchcase(path, rule.pattern):
                q = rule.quantization
                return {"group_size": q.group_size, "bits": q.bits, "mode": q.mode} if q else False
        return True

    return decide


def cases() -> list[Any]:
    """Everything on the dense model, a part of it on the others each time."""
    some = {"2bit32", "4bit64", "5bit128", "8bit128", "mxfp4", "nvfp4", "mxfp8", "mixed_3_6_64", "float16"}
    return [
        pytest.param(model, variant, id=f"{model}-{variant.name}")
        for model in MODELS
        for variant in ALL
        if model == "dense" or (variant.name in some and not (model == "eight" and variant.recipe))
    ]


@pytest.mark.parametrize(("model", "variant"), cases())
def test_every_setting(model: str, variant: Variant, ours: Any, tmp_path: Path) -> None:
    base, made = ours(model)
    assert differences(made[variant.name], theirs(base, variant, tmp_path / "made")) == []


@pytest.mark.parametrize("model", ["dense", "latent"])
@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides(name: str, model: str, ours: Any, tmp_path: Path) -> None:
    base, _ = ours(model)
    variant = Variant("v", quantization=Quantization(4, 32), overrides=OVERRIDES[name])
    made = stream(base, None, [variant])["v"]
    assert differences(made, theirs(base, variant, tmp_path / "made")) == []


def test_an_override_wins_over_the_model_and_the_recipe(ours: Any) -> None:
    """qwen3_moe asks for 8 bits of its routers, mixed_4_6 for 6 bits of the head."""
    base, made = ours("moe")
    structure = inspect(base)
    gate, head = "model.layers.0.mlp.gate", "lm_head"
    plain, changed = (override("*.gate"), override("lm_head", 3, 64)), Quantization(4, 64)
    assert resolve(structure, Variant("v", quantization=changed))[0][gate] == Quantization(8, 64)
    for variant in (
        Variant("v", quantization=changed, overrides=plain),
        Variant("v", recipe="mixed_4_6", overrides=plain),
    ):
        chosen = resolve(structure, variant)[0]
        assert gate not in chosen
        assert chosen[head] == Quantization(3, 64)
    assert made["4bit64"].config["quantization"][gate] == {"group_size": 64, "bits": 8}


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_config_says_the_dtype(dtype: str, wraps: bool, key: str, tmp_path: Path) -> None:
    """Whichever key it uses: what mlx_lm.convert leaves stale, and casts back the next time."""
    base = checkpoint(tmp_path / "b", dense("qwen3_vl" if wraps else "llama", wraps=wraps, dtype_key=key))
    config = stream(base, None, [Variant("v", dtype=dtype)])["v"].config
    assert (config["text_config"]["dtype"] if wraps else config[key]) == dtype


def test_what_the_model_keeps_is_not_cast(ours: Any) -> None:
    """qwen3_5's cast_predicate leaves A_log in float32."""
    kept = {name: t.dtype for name, t in ours("kept")[1]["float16"].tensors.items() if t.dtype != "F16"}
    assert kept
    assert all(name.endswith("A_log") and dtype == "F32" for name, dtype in kept.items())
