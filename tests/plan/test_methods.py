"""What a learned quantizer cannot do is refused when planning, with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.keys import Digest
from builder.plan.learned import plan_learned
from builder.plan.methods import AWQ_TYPES, BITS
from builder.plan.planning import make_plan
from builder.plan.quantization import PlanError
from builder.plan.types import Sources, TargetPlan
from builder.sources.facts import Calibration, Unknown
from builder.spec.quantizers import METHODS, MODES, Learned
from builder.spec.types import Base, Model, PathSource, Quantization, Spec, Target, Variant
from tests.plan.test_planning import BASE, structure

TEXT = Calibration(Digest("c" * 64), "text")
F16 = Variant("f16", dtype="float16")
MODEL = Model("m", "b", None, ("f16", "v"))


def plan(
    method: str, bits: int = 4, group: int = 16, *, kind: str = "toy", high: int = 8, layers: int = 2
) -> TargetPlan:
    spec = Spec(
        Path("/project/artifacts.toml"),
        Path("/project/store"),
        bases={"b": Base("b", PathSource(Path("/base")))},
        variants={"f16": F16},
        models={"m": replace(MODEL, variants=("f16",))},
    )
    base = replace(BASE, structure=replace(structure(layers), model_type=kind))
    source = make_plan(spec, Sources({"b": base}, {})).targets["m_f16"]
    learned = Learned(method, "f16", Path("/text"), high_bits=high)
    variant = Variant("v", quantization=Quantization(bits, group), learned=learned)
    made = plan_learned(Target(MODEL, variant), source, TEXT)
    assert isinstance(made, TargetPlan)
    return made


def test_what_each_method_can_do() -> None:
    for method, bits in BITS.items():
        for one in bits:
            assert plan(method, one, kind="llama").needs == "m_f16"


REFUSED = {
    "type": (
        {"method": "awq", "kind": "mamba"},
        'method "awq" does not support model type "mamba" (it supports deepseek_v2, gemma3, gemma3_text,'
        " llama, llava, ministral3, mistral, mistral3, qwen2, qwen3).",
        'Use "dwq", "gptq" or "dynamic", or plain `bits`.',
    ),
    "gptq bits": (
        {"method": "gptq", "bits": 5},
        'method "gptq" cannot make 5 bits (it makes 2, 4, 8).',
        "Set `bits` to one of these, or remove `method`.",
    ),
    "dwq bits": (
        {"method": "dwq", "bits": 8},
        'method "dwq" cannot make 8 bits (it makes 2, 3, 4, 5, 6).',
        "Set `bits` to one of these, or remove `method`.",
    ),
    "high bits": (
        {"method": "dynamic", "bits": 4, "high": 4},
        'method "dynamic" needs high_bits above bits: 4 is not above 4.',
        "Raise `high_bits`, or lower `bits`.",
    ),
    "group": (
        {"method": "gptq", "group": 32},
        'method "gptq" quantizes every weight, and groups of 32 do not divide the 48 columns of "head".',
        'Set a `group_size` that does, or use "dwq", which leaves such a weight as it is.',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    how, what, hint = REFUSED[case]
    with pytest.raises(PlanError) as caught:
        plan(**how)  # type: ignore[arg-type]
    assert str(caught.value) == f"[variant.v] {what}\n  {hint}"


def test_dwq_passes_by_what_its_group_does_not_divide() -> None:
    assert plan("dwq", group=64)


def test_a_text_that_is_not_there() -> None:
    source = make_plan(
        Spec(
            Path("/project/artifacts.toml"),
            Path("/project/store"),
            bases={"b": Base("b", PathSource(Path("/base")))},
            variants={"f16": F16},
            models={"m": replace(MODEL, variants=("f16",))},
        ),
        Sources({"b": BASE}, {}),
    ).targets["m_f16"]
    variant = Variant("v", quantization=Quantization(4, 64), learned=Learned("dwq", "f16", Path("/text")))
    assert not isinstance(plan_learned(Target(MODEL, variant), source, Unknown("no text")), TargetPlan)


def test_the_tables_are_those_of_mlx_lm() -> None:
    from mlx_lm.quant import gptq
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS

    assert set(AWQ_MODEL_CONFIGS) == AWQ_TYPES
    assert set(BITS) == set(METHODS)
    assert max(BITS.values(), key=len) == set(MODES["affine"][0])
    import mlx.core as mx

    for bits in MODES["affine"][0]:
        codes, scales, biases = mx.quantize(mx.ones((4, 64)), 64, bits)
        if bits in BITS["gptq"]:
            assert mx.array_equal(gptq.quantize(mx.ones((4, 64)), bits, scales, biases), codes).item()
        else:
            with pytest.raises(AssertionError, match="Unsupported bits"):
                gptq.quantize(mx.ones((4, 64)), bits, scales, biases)
