"""What would silently go wrong in mlx-lm is refused when planning, with the reason and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.plan.planning import make_plan
from builder.plan.quantization import PlanError, resolve
from builder.plan.types import Sources, TargetPlan, Unresolved
from builder.sources.facts import BaseFacts
from builder.spec.types import Adapter, Base, Model, Override, PathSource, Quantization, Spec, Variant
from builder.weights.overrides import Idle, idle
from builder.weights.structure import Quantizable
from tests.plan.test_planning import ADAPTER, BASE, structure

PACKED = replace(BASE, structure=replace(BASE.structure, quantized=True))
VARIANTS = {
    "4bit": Variant("v", quantization=Quantization(4, 64)),
    "recipe": Variant("v", recipe="mixed_3_6"),
    "f16": Variant("v", dtype="float16"),
    "router": Variant(
        "v", quantization=Quantization(4, 64), overrides=(Override("router", Quantization(8, 16)),)
    ),
}


def planned(variant: str, adapter: bool, base: BaseFacts) -> TargetPlan:
    spec = Spec(
        Path("/project/artifacts.toml"),
        Path("/project/store"),
        bases={"b": Base("b", PathSource(Path("/base")))},
        adapters={"a": Adapter("a", "b", Path("/adapter"))},
        variants={"v": VARIANTS[variant]},
        models={"m": Model("m", "b", "a" if adapter else None, ("v",))},
    )
    target = make_plan(spec, Sources({"b": base}, {"a": ADAPTER})).targets["m_v"]
    if isinstance(target, Unresolved):
        assert target.error is not None
        raise target.error
    return target


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_on_a_quantized_base(variant: str) -> None:
    assert planned(variant, True, BASE)
    with pytest.raises(PlanError) as caught:
        planned(variant, True, PACKED)
    assert str(caught.value) == (
        '[model.m] adapter "a" would be rounded away: base "b" is quantized already.\n'
        "  Set `dequantize = true` in [base.b], or take the original weights as the base."
    )


@pytest.mark.parametrize("variant", ["4bit", "recipe"])
def test_new_bits_for_a_quantized_base(variant: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned(variant, False, PACKED)
    assert caught.value.message == (
        '[model.m] variant "v" would keep the old bits: base "b" is quantized already.'
    )


def test_a_quantized_base_as_it_is() -> None:
    assert planned("f16", False, PACKED).quantization == {}


def test_a_group_that_does_not_divide_an_overridden_path() -> None:
    variant = Variant(
        "v",
        quantization=Quantization(4, 64),
        overrides=(Override("layers.*", Quantization(4, 128)), Override("embed", Quantization(4, 128))),
    )
    with pytest.raises(PlanError) as caught:
        resolve(structure(), variant)
    assert str(caught.value) == (
        '[variant.v] groups of 128 do not divide the 64 columns of "embed".\n'
        "  Give that path another `group_size` in `overrides`, or `false`."
    )


def overridden(*patterns: str, off: tuple[str, ...] = ()) -> Variant:
    rules = [Override(pattern, None) for pattern in off]
    rules += [Override(pattern, Quantization(8, 16)) for pattern in patterns]
    return Variant("v", quantization=Quantization(4, 64), overrides=tuple(rules))


def test_an_override_of_what_mlx_lm_leaves_alone() -> None:
    """mlx_lm.utils.quantize_model looks at the variant's own group first, whatever a predicate would say."""
    with pytest.raises(PlanError) as caught:
        resolve(structure(), overridden("he*"))
    assert str(caught.value) == (
        '[variant.v] override "he*" does nothing for "head": mlx-lm leaves it alone, because the variant\'s'
        " groups of 64 do not divide its 48 columns.\n"
        "  Give the variant a `group_size` that divides, or first set that path to `false`."
    )
    assert resolve(structure(), overridden("*", off=("head",)))[1] == ()


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("haed", "head"),
        ("heads", "head"),
        ("*.dwon_proj", "*.down_proj"),
        ("layers.*.dwon_proj", "*.down_proj"),
        ("layers.1.down_porj", "layers.1.down_proj"),
    ],
)
def test_a_pattern_that_is_a_slip(pattern: str, close: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve(structure(), overridden(pattern))
    assert str(caught.value) == (
        f'[variant.v] override "{pattern}" matches nothing; did you mean "{close}"?\n'
        '  A pattern stands for the whole path of a module (of "toy").'
    )


def test_a_word_of_a_name_is_near_to_the_whole() -> None:
    renamed = replace(structure(), quantizable=(Quantizable("lm_head", True, {}),))
    assert idle(renamed, overridden("haed")) == (Idle("haed", "lm_head", slip=True),)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("router", None),
        ("experts.*", None),
        ("layers.7.*", None),
        ("layers.7.down_proj", "layers.1.down_proj"),
        ("down_proj", "*.down_proj"),
        ("head.weight", "head"),
        ("*.mown_proj", "*.down_proj"),
    ],
)
def test_a_pattern_that_another_model_may_need_is_only_remarked(pattern: str, near: str | None) -> None:
    assert resolve(structure(), overridden(pattern))[1] == ("head",)
    assert idle(structure(), overridden(pattern)) == (Idle(pattern, near, slip=False),)


def test_remarks() -> None:
    assert planned("4bit", False, BASE).remarks == (
        "m_v: stays unquantized, because groups of 64 do not divide its columns: head",
    )
    assert planned("f16", False, BASE).remarks == ()
    assert planned("router", False, BASE).remarks[1:] == ('m_v: override "router" matches nothing',)


def test_a_group_of_the_models_own_rule_that_does_not_divide() -> None:
    own = replace(structure(), quantizable=(Quantizable("head", Quantization(8, 64), {}),))
    with pytest.raises(PlanError, match=r'groups of 64 do not divide the 48 columns of "head"'):
        resolve(own, Variant("v", quantization=Quantization(4, 16, "nvfp4")))
    assert resolve(own, Variant("v", quantization=Quantization(4, 64))) == ({}, ("head",))
