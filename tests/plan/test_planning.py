"""The plan is a pure value: what each target is made of, and which keys change with which input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.keys import Digest, Key
from builder.plan.experts import routing_key
from builder.plan.goals import allocation_key, sensitivity_key
from builder.plan.planning import make_plan
from builder.plan.quantization import PlanError
from builder.plan.types import Plan, Sources, TargetPlan, Unresolved, nominal_size
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Calibration, Unknown
from builder.spec.parse import parse_spec
from builder.spec.quantizers import Calibrated, Experts, Goal, Learned
from builder.spec.types import Quantization, Spec, Target, Variant
from builder.store.types import Blob, FileEntry
from builder.weights.structure import (
    Parameter,
    Quantizable,
    Structure,
    TensorSpec,
    block_of,
    from_text,
    to_text,
)

DECLARATION = """
[base.b]
path = "b"
[adapter.a]
base = "b"
path = "a"
[variant.4bit]
bits = 4
[variant.f16]
dtype = "float16"
[variant.mixed]
recipe = "mixed_3_6"
[model.m]
adapter = "a"
variants = ["4bit", "f16", "mixed"]
[model.plain]
base = "b"
variants = ["4bit"]
"""


def structure(layers: int = 2) -> Structure:
    """A model with an embedding, `layers` blocks of one matrix and a norm, and a head that 64 divides not."""
    shapes = {"embed.weight": (100, 64)}
    for index in range(layers):
        shapes[f"layers.{index}.down_proj.weight"] = (64, 128)
        shapes[f"layers.{index}.norm.weight"] = (64,)
    shapes["head.weight"] = (10, 48)
    paths = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    return Structure(
        "toy",
        tuple(Parameter(TensorSpec(name, "BF16", shape)) for name, shape in shapes.items()),
        tuple(Quantizable(path, True, {"mixed_3_6": 6 if "0" in path else 3}) for path in paths),
        frozenset(paths),
        "bfloat16",
        False,
        {"mixed_2_6": "no down_proj"},
    )


IDENTITY = BaseIdentity(Digest("b" * 64), Digest("c" * 64), Digest("d" * 64), Digest("e" * 64), ())
BASE = BaseFacts(IDENTITY, structure())
ADAPTER = AdapterFacts(Digest("a" * 64), {"layers.1": Key("1" * 64)}, frozenset({"layers.1.down_proj"}))


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    file = tmp_path / "artifacts.toml"
    file.write_text(DECLARATION)
    return parse_spec(file)


def plan(spec: Spec, base: BaseFacts = BASE, adapter: AdapterFacts = ADAPTER, toolchain: str = "") -> Plan:
    return make_plan(spec, Sources({"b": base}, {"a": adapter}, toolchain))


def target(plan: Plan, name: str) -> TargetPlan:
    found = plan.targets[name]
    assert isinstance(found, TargetPlan)
    return found


def refused(plan: Plan) -> dict[str, str]:
    """The targets that can never be built as they are declared, and why."""
    found = {}
    for each in plan.targets.values():
        if isinstance(each, Unresolved):
            assert isinstance(each.error, PlanError)
            assert each.error.message.rstrip(".") == each.reason
            found[each.name] = each.reason
    return found


def keys(plan: Plan, name: str) -> dict[str, Key]:
    return {action.block: action.key for action in target(plan, name).actions}


def changed(before: Plan, after: Plan, name: str) -> set[str]:
    old, new = keys(before, name), keys(after, name)
    return {block for block in old if old[block] != new[block]}


def test_blocks_in_order(spec: Spec) -> None:
    assert list(keys(plan(spec), "m_4bit")) == ["embed", "layers.0", "layers.1", "head"]


def test_block_of() -> None:
    assert block_of("model.layers.3.mlp.up_proj.weight") == "model.layers.3"
    assert block_of("layers.0.mlp.experts.7.up.weight") == "layers.0"
    assert block_of("model.norm.weight") == "model.norm"


def test_a_changed_slice_changes_its_block_of_every_variant(spec: Spec) -> None:
    other = replace(ADAPTER, digest=Digest("c" * 64), slices={"layers.1": Key("2" * 64)})
    before, after = plan(spec), plan(spec, adapter=other)
    for name in ("m_4bit", "m_f16", "m_mixed"):
        assert changed(before, after, name) == {"layers.1"}
    assert changed(before, after, "plain_4bit") == set()


def test_blocks_without_adapter_are_shared_with_the_plain_base(spec: Spec) -> None:
    made = plan(spec)
    tuned, plain = keys(made, "m_4bit"), keys(made, "plain_4bit")
    assert {block for block in tuned if tuned[block] == plain[block]} == {"embed", "layers.0", "head"}
    assert target(made, "m_4bit").key != target(made, "plain_4bit").key


def test_another_base_changes_everything(spec: Spec) -> None:
    other = replace(BASE, identity=replace(IDENTITY, weights=Digest("d" * 64)))
    assert len(changed(plan(spec), plan(spec, base=other), "m_4bit")) == 4


def test_a_setting_changes_only_what_it_touches(spec: Spec) -> None:
    variants = dict(spec.variants)
    how = variants["4bit"].quantization
    assert how is not None
    variants["4bit"] = replace(variants["4bit"], quantization=replace(how, group_size=32), group_size=32)
    before, after = plan(spec), plan(replace(spec, variants=variants))
    assert changed(before, after, "m_4bit") == {"embed", "layers.0", "layers.1"}  # 32 does not divide 48
    assert changed(before, after, "m_f16") == set()


def test_the_toolchain_is_keyed_only_on_demand(spec: Spec) -> None:
    assert len(changed(plan(spec), plan(spec, toolchain="mlx 9"), "m_4bit")) == 4


def test_a_width_that_the_group_does_not_divide_is_skipped_and_said(spec: Spec) -> None:
    made = target(plan(spec), "m_4bit")
    assert made.skipped == ("head",)
    assert "head" not in made.quantization


def test_exact_sizes(spec: Spec) -> None:
    made = target(plan(spec), "m_4bit")
    embed = made.actions[0]
    assert [(t.name, t.dtype, t.shape) for t in embed.tensors] == [
        ("embed.biases", "BF16", (100, 1)),
        ("embed.scales", "BF16", (100, 1)),
        ("embed.weight", "U32", (100, 8)),
    ]
    assert embed.size > 100 * 8 * 4 + 2 * 200
    assert embed.size % 8 == 0


def test_bits_per_weight_are_rounded_once(spec: Spec) -> None:
    """Tables show three digits of what manifests keep: rounding the exact value could show another one."""
    made = target(plan(spec), "m_4bit")
    nbytes = sum(tensor.nbytes for action in made.actions for tensor in action.tensors)
    exact = 8 * nbytes / made.base.structure.parameter_count
    assert exact != round(exact, 4)
    assert made.bits_per_weight == round(exact, 4)


def test_unfingerprinted_sources_leave_targets_unresolved(spec: Spec) -> None:
    made = make_plan(spec, Sources({"b": Unknown("has not been fingerprinted yet")}, {"a": ADAPTER}))
    assert {t.name: getattr(t, "reason", "") for t in made.targets.values()} == dict.fromkeys(
        ("m_4bit", "m_f16", "m_mixed", "plain_4bit"), "base:b has not been fingerprinted yet"
    )


def test_a_stray_slice_is_refused(spec: Spec) -> None:
    stray = replace(ADAPTER, slices={"layers.7": Key("2" * 64)})
    made = plan(spec, adapter=stray)
    said = '[adapter.a] changes "layers.7", which base "b" does not have'
    assert refused(made) == dict.fromkeys(("m_4bit", "m_f16", "m_mixed"), said)
    assert target(made, "plain_4bit") == target(plan(spec), "plain_4bit")  # as if nothing were wrong


def test_a_recipe_that_does_not_fit_is_refused(spec: Spec) -> None:
    variants = {**spec.variants, "mixed": replace(spec.variants["mixed"], recipe="mixed_2_6")}
    made = plan(replace(spec, variants=variants))
    said = '[variant.mixed] recipe "mixed_2_6" does not fit model type "toy": no down_proj'
    assert refused(made) == {"m_mixed": said}
    assert {found.name for found in made.resolved()} == {"m_4bit", "m_f16", "plain_4bit"}


def test_structure_text_round_trip() -> None:
    assert from_text(to_text(structure())) == structure()


GOLDEN = {
    "m_4bit": "63c979997f0b35a966b824aab77236c6b36d514fd6d0585573fe86e5968b9ea9",
    "m_f16": "77ba9bc48c985ac559fe3876832ef795fc56670f0f4b891bb7017dccaef02845",
    "m_mixed": "15df3ce267e02faed9cc0a112b44b58608a3c35875157d2d60cd22fb11118609",
    "plain_4bit": "3b2fd5c0b8b5e912584b267ae05ded5571518284098d1408d92d02faf3c51632",
}


def test_golden_keys(spec: Spec) -> None:
    """A key that changes rebuilds everybody's models: change these only on purpose, with a new domain."""
    assert {found.name: found.key for found in plan(spec).resolved()} == GOLDEN


GOLDEN_MEASURED = {
    "routing": "a962f61564064c86e2b393adc12a91f3c4959bc0ddd096149ce9fb5599daab43",
    "allocation": "6696488d419bd1fe25959f48c85e42d74bf9b76e6a80931be8329f75a37b014a",
    "sensitivity": "1ec5dab3acdb10fafc4c968996abd16c4ec5f38131c6131da52e6bf7b9179cdb",
}


def test_golden_keys_of_what_is_measured(spec: Spec) -> None:
    """A key that changes measures everything again."""
    text = Calibration(Digest("c" * 64), "jsonl")
    how = Calibrated(Path("text.jsonl"), 8, 32)
    variant = Variant("small", calibrated=how, goal=Goal(5.0), experts=Experts(0.5, "reap"))
    asked = Target(spec.models["m"], variant)
    measured = replace(asked, variant=replace(variant, quantization=Quantization(5, 64)))
    assert {
        "routing": routing_key(asked, BASE, ADAPTER, text, ""),
        "allocation": allocation_key(asked, BASE, ADAPTER, text, ""),
        "sensitivity": sensitivity_key(measured, BASE, ADAPTER, text, ""),
    } == GOLDEN_MEASURED


def test_a_learned_target_is_put_in_order_by_its_bits(spec: Spec) -> None:
    """Its own size is not known before it is made; the plan says so instead of 0."""
    learned = Variant(
        "dwq", quantization=Quantization(4, 64), learned=Learned("dwq", "f16", Path("text.txt"))
    )
    model = replace(spec.models["m"], variants=("4bit", "f16", "dwq"))
    made = make_plan(
        replace(spec, variants={**spec.variants, "dwq": learned}, models={"m": model}),
        Sources({"b": BASE}, {"a": ADAPTER}, calibrations={"dwq": Calibration(Digest("c" * 64), "text")}),
    )
    assert target(made, "m_dwq").whole_size is None
    assert 0 < nominal_size(target(made, "m_dwq")) < nominal_size(target(made, "m_f16"))
    assert nominal_size(target(made, "m_4bit")) == target(made, "m_4bit").size


GENERATION = FileEntry("generation_config.json", Blob(Digest("e" * 64), 9))


def test_what_mlx_lm_merges_into_config_json_is_in_its_key_alone(spec: Spec) -> None:
    other = FileEntry("tokenizer.json", GENERATION.blob)
    bases = {
        name: replace(BASE, identity=replace(IDENTITY, aux=(entry,)))
        for name, entry in (("merged", GENERATION), ("copied", other))
    }
    plain, merged, copied = (target(plan(spec, base), "m_4bit") for base in (BASE, *bases.values()))
    assert plain.config == copied.config != merged.config
    assert plain.actions == copied.actions == merged.actions
    again = replace(
        BASE, identity=replace(IDENTITY, aux=(replace(GENERATION, blob=Blob(Digest("f" * 64), 9)),))
    )
    assert target(plan(spec, again), "m_4bit").config not in (plain.config, merged.config)
    assert merged.config == GOLDEN_CONFIG


GOLDEN_CONFIG = "302083deab723d5421f8cc9b9c80837cb06e508abe6ae13656dc5fed5d5d5fba"
