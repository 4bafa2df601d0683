"""Why a target would be built again: each input and setting that differs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.keys import Digest, Key
from builder.plan.changes import (
    Change,
    block_ranges,
    changes,
    explain,
    inputs_of,
    settings_of,
    shortened,
    summary,
)
from builder.plan.planning import make_plan
from builder.plan.types import Sources, TargetPlan
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Calibration
from builder.spec.quantizers import Learned
from builder.spec.types import Model, Override, Quantization, Spec, Variant
from builder.store.types import Blob, FileEntry, Manifest
from tests.toy import STRUCTURE

BASE, ADAPTER, TEXT, OTHER, MADE = ("b" * 64, "a" * 64, "c" * 64, "d" * 64, "e" * 64)
TOKENIZER = FileEntry("tokenizer.json", Blob(Digest("f" * 64), 9))
IDENTITY = BaseIdentity(Digest(BASE), Digest(MADE), Digest(MADE), Digest(MADE), (TOKENIZER,))
FOUR = Variant("4bit", quantization=Quantization(4, 64))
DWQ = Variant(
    "dwq", quantization=Quantization(4, 64), learned=Learned("dwq", "f16", Path("text.txt"), seed=1)
)


def plan(variant: Variant = FOUR, adapter: str | None = "tuned", toolchain: str = "") -> TargetPlan:
    """The plan of one target, with nothing read from any disk."""
    variants = {"f16": Variant("f16", dtype="float16"), variant.name: variant}
    model = Model("m", "toy", adapter, tuple(variants))
    spec = Spec(Path("artifacts.toml"), Path("store"), variants=variants, models={"m": model})
    facts = AdapterFacts(Digest(ADAPTER), {"layers.1": Key("1" * 64)}, frozenset({"layers.1.proj"}))
    sources = Sources(
        {"toy": BaseFacts(IDENTITY, STRUCTURE)},
        {"tuned": facts},
        toolchain,
        calibrations={variant.name: Calibration(Digest(TEXT), "text")},
    )
    found = make_plan(spec, sources).targets[f"m_{variant.name}"]
    assert isinstance(found, TargetPlan)
    return found


def former(of: TargetPlan) -> Manifest:
    """The manifest of a build of exactly this plan, under another key."""
    made = [*(action.file for action in of.actions), "config.json", "model.safetensors.index.json"]
    files = (*(FileEntry(name, Blob(Digest(MADE), 1)) for name in made), *of.base.aux)
    return Manifest(
        Key("0" * 64),
        "target",
        of.name,
        "2025-01-01T00:00:00Z",
        files,
        inputs_of(of),
        settings_of(of),
        {"toolchain": "mlx 1"},
    )


def with_inputs(manifest: Manifest, **inputs: str) -> Manifest:
    return replace(manifest, inputs={**manifest.inputs, **inputs})


def texts(found: tuple[Change, ...]) -> list[str]:
    return [change.text for change in found]


def test_the_same_inputs_and_settings_differ_in_nothing() -> None:
    for variant in (FOUR, DWQ, Variant("f16", dtype="float16")):
        assert changes(plan(variant), former(plan(variant))) == ()
    assert summary(()) == "the way blocks are made changed"


@pytest.mark.parametrize(
    ("variant", "before", "said"),
    [
        (FOUR, {"base_digest": OTHER}, ["base changed"]),
        (FOUR, {"adapter_digest": OTHER}, ["adapter changed"]),
        (FOUR, {"base_digest": OTHER, "adapter_digest": OTHER}, ["base changed", "adapter changed"]),
        (FOUR, {"base": "old", "base_digest": OTHER}, ["base old -> toy"]),
        (FOUR, {"adapter": "old", "adapter_digest": OTHER}, ["adapter old -> tuned"]),
        (FOUR, {"adapter": "old"}, []),  # the same bytes under another name: nothing is made again
        (
            FOUR,
            {"adapter": "old", "adapter_digest": OTHER, "base_digest": OTHER},
            ["base changed", "adapter old -> tuned"],
        ),
        (DWQ, {"calibration_digest": OTHER}, ["calibration changed"]),
        (DWQ, {"base": "old", "calibration_digest": OTHER}, ["calibration changed"]),
    ],
)
def test_inputs(variant: Variant, before: dict[str, str], said: list[str]) -> None:
    of = plan(variant)
    assert texts(changes(of, with_inputs(former(of), **before))) == said


def test_an_adapter_comes_and_goes() -> None:
    assert texts(changes(plan(), former(plan(adapter=None)))) == ["adapter unset -> tuned"]
    assert texts(changes(plan(adapter=None), former(plan()))) == ["adapter tuned -> unset"]


def quantized(bits: int = 4, group: int = 64, mode: str = "affine") -> Variant:
    return replace(FOUR, quantization=Quantization(bits, group, mode))


def overridden(*overrides: Override) -> Variant:
    return replace(FOUR, overrides=overrides)


SETTINGS: list[tuple[Variant, Variant, list[str]]] = [
    (quantized(5), FOUR, ["bits 5 -> 4"]),
    (quantized(5, 32), FOUR, ["bits 5 -> 4", "group_size 32 -> 64"]),
    (quantized(4, 32, "mxfp4"), quantized(4, 32), ["mode mxfp4 -> affine"]),
    (replace(FOUR, dtype="float16"), FOUR, ["dtype float16 -> bfloat16"]),
    (replace(FOUR, name="old"), FOUR, []),  # a name is in no key
    (
        overridden(Override("embed", Quantization(8, 32))),
        FOUR,
        ["override embed 1: 8 bits, group 32, affine -> unset"],
    ),
    (FOUR, overridden(Override("embed", None)), ["override embed unset -> 1: as it is"]),
    (
        overridden(Override("embed", Quantization(6, 64))),
        overridden(Override("embed", Quantization(8, 64))),
        ["override embed 1: 6 bits, group 64, affine -> 1: 8 bits, group 64, affine"],
    ),
    (
        Variant("4bit", dtype="float16"),
        replace(FOUR, dtype="float16"),
        ["bits unset -> 4", "group_size unset -> 64", "mode unset -> affine"],
    ),
    (
        replace(DWQ, learned=replace(DWQ.learned, seed=2)) if DWQ.learned else DWQ,
        DWQ,
        ["seed 2 -> 1"],
    ),
]


@pytest.mark.parametrize(("old", "now", "said"), SETTINGS)
def test_settings(old: Variant, now: Variant, said: list[str]) -> None:
    """Before and after as they are declared, in the order of their names."""
    was = replace(former(plan(old)), name=plan(now).name)
    assert texts(changes(plan(now), was)) == said


def test_where_a_text_lies_is_not_a_setting() -> None:
    """Its digest is an input, its path changes no byte."""
    assert DWQ.learned is not None
    moved = replace(DWQ, learned=replace(DWQ.learned, calibration=Path("elsewhere.txt")))
    assert changes(plan(DWQ), former(plan(moved))) == ()
    assert "calibration" not in settings_of(plan(DWQ))


def drop_tokenizer(manifest: Manifest) -> Manifest:
    return replace(manifest, files=tuple(e for e in manifest.files if e.name != "tokenizer.json"))


def other_tokenizer(manifest: Manifest) -> Manifest:
    other = FileEntry("tokenizer.json", Blob(Digest(OTHER), 9))
    return replace(drop_tokenizer(manifest), files=(*drop_tokenizer(manifest).files, other))


def more_merges(manifest: Manifest) -> Manifest:
    return replace(manifest, files=(*manifest.files, FileEntry("merges.txt", Blob(Digest(OTHER), 9))))


def more_shards(manifest: Manifest) -> Manifest:
    """Shards have other names where a structure has more blocks: no change that a person made."""
    other = FileEntry("model-00009-of-00009.safetensors", Blob(Digest(OTHER), 9))
    return replace(manifest, files=(*manifest.files, other))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_tokenizer, [Change("tokenizer.json", OTHER, TOKENIZER.blob.digest, is_digest=True)]),
        (drop_tokenizer, [Change("tokenizer.json", None, TOKENIZER.blob.digest)]),
        (more_merges, [Change("merges.txt", OTHER, None)]),
        (more_shards, []),
    ],
)
def test_copied_files(change: Callable[[Manifest], Manifest], expected: list[Change]) -> None:
    assert list(changes(plan(), change(former(plan())))) == expected


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("", "", []),  # not a part of the keys
        ("mlx 1", "mlx 1", []),
        ("mlx 1", "mlx 2", ["toolchain mlx 1 -> mlx 2"]),
        ("", "mlx 2", ["toolchain unset -> mlx 2"]),
        ("mlx 1", "", ["toolchain mlx 1 -> unset"]),
    ],
)
def test_toolchain(before: str, now: str, said: list[str]) -> None:
    """With [build] strict_toolchain, the versions are in the keys."""
    old, new = plan(toolchain=before), plan(toolchain=now)
    assert (old.key != new.key) == bool(said)
    assert texts(changes(new, former(old))) == said


def test_all_changes_in_one_clause() -> None:
    found = (Change("adapter", OTHER, ADAPTER, is_digest=True), Change("group_size", "64", None))
    assert summary(found) == "adapter changed, group_size 64 -> unset"


def test_what_a_build_would_make_and_reuse() -> None:
    of = plan()
    missing = of.actions[1:]
    why = explain(
        of, "out of date", "adapter changed", with_inputs(former(of), adapter_digest=OTHER), missing
    )
    assert why.changes == (Change("adapter", OTHER, ADAPTER, is_digest=True),)
    assert (why.target, why.state, why.reason) == ("m_4bit", "out of date", "adapter changed")
    assert (why.blocks, why.total, why.reused) == (("layers.0", "layers.1"), 3, 1)
    assert why.nbytes == sum(action.size for action in missing)
    assert why.former == "2025-01-01T00:00:00Z"


def test_without_a_former_build_nothing_has_changed() -> None:
    of = plan()
    never = explain(of, "not built", "never built", None, of.actions)
    assert (never.changes, never.former, never.reused) == ((), None, 0)
    same = replace(former(of), key=of.key, inputs={}, settings={})
    dropped = explain(of, "not kept", "its bytes were dropped", same, of.actions)
    assert (dropped.changes, dropped.former) == ((), "2025-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("blocks", "ranges"),
    [
        ([], ()),
        (["model.norm"], ("model.norm",)),
        (["layers.3"], ("layers.3",)),
        (["layers.3", "layers.4"], ("layers.3-4",)),
        (["layers.9", "layers.10", "layers.11"], ("layers.9-11",)),
        (["layers.1", "layers.3"], ("layers.1", "layers.3")),
        (["a.1", "b.2"], ("a.1", "b.2")),
        (["layers.1", "norm", "layers.2"], ("layers.1", "norm", "layers.2")),
        (["embed", "layers.0", "layers.1", "layers.5", "head"], ("embed", "layers.0-1", "layers.5", "head")),
        (["layers.2", "layers.1"], ("layers.2", "layers.1")),
    ],
)
def test_block_ranges(blocks: list[str], ranges: tuple[str, ...]) -> None:
    assert block_ranges(blocks) == ranges


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "unset"),
        ("ab" * 32, "abababababab"),
        ("g" * 64, "g" * 64),
        ("ab", "ab"),
        ("AB" * 32, "AB" * 32),
    ],
)
def test_shortened(value: str | None, said: str) -> None:
    assert shortened(value) == said
