"""One pass of calibrated rounding: what it depends on, what it makes again, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.arrays import Values
from builder.engine.loading import load_base
from builder.engine.rounding import stream as stream_module
from builder.engine.rounding.shard import LEAST
from builder.engine.rounding.stream import head_moments
from builder.errors import EngineError
from builder.spec.types import Quantization, Variant
from tests.architectures import checkpoint
from tests.comparison import loaded, specs, stream
from tests.engine.rounding.models import BY_NAME, World, as_arrays, logits, text
from tests.tiny import BLOCKS, make_adapter, make_base

FOUR = Variant("4bit", quantization=Quantization(4, 32))
TOKENS = text(8, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "base")


def contents(world: World) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(world.folder.iterdir())}


def test_two_runs_give_identical_bytes(base: Path, tmp_path: Path) -> None:
    one, other = World(base, tmp_path / "one", FOUR), World(base, tmp_path / "other", FOUR)
    one.round(TOKENS)
    other.round(TOKENS)
    assert len(contents(one)) == BLOCKS
    assert contents(one) == contents(other)


@pytest.mark.parametrize("kept", [1, 3])
def test_a_run_goes_on_at_the_first_missing_block(kept: int, base: Path, tmp_path: Path) -> None:
    whole, again = World(base, tmp_path / "whole", FOUR), World(base, tmp_path / "again", FOUR)
    whole.round(TOKENS)
    blocks = list(whole.structure.blocks)
    for block in blocks[:kept]:
        shutil.copy(whole.file(block), again.file(block))
    again.round(TOKENS)
    assert list(again.made) == blocks[kept:]
    assert contents(again) == contents(whole)


def test_an_adapter_of_late_layers_leaves_the_early_blocks(base: Path, tmp_path: Path) -> None:
    plain, tuned = World(base, tmp_path / "plain", FOUR), World(base, tmp_path / "tuned", FOUR)
    plain.round(TOKENS)
    tuned.round(TOKENS, loaded(make_adapter(tmp_path / "adapter", layers=(2,))))
    same = [block for block in plain.made if plain.file(block).read_bytes() == tuned.file(block).read_bytes()]
    assert same == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
    assert {block for block, made in tuned.made.items() if made.survival} >= {"model.layers.2"}


def test_the_text_matters(base: Path, tmp_path: Path) -> None:
    one, other = World(base, tmp_path / "one", FOUR), World(base, tmp_path / "other", FOUR)
    one.round(TOKENS)
    other.round(text(8, 24, seed=1))
    a, b = contents(one), contents(other)
    assert [name for name in a if a[name] == b[name]] == ["model.norm.safetensors"]


@pytest.mark.parametrize(
    ("bits", "group", "dtype"),
    [
        pytest.param(2, 32, None, marks=pytest.mark.slow),
        (3, 64, "float16"),
        pytest.param(8, 128, "float32", marks=pytest.mark.slow),
    ],
)
def test_any_setting_makes_the_tensors_of_a_plain_pass(
    bits: int, group: int, dtype: str | None, base: Path, tmp_path: Path
) -> None:
    variant = Variant("v", quantization=Quantization(bits, group), dtype=dtype)
    world = World(base, tmp_path / "made", variant)
    world.round(TOKENS)
    plain = stream(base, None, [variant], structure=world.structure)["v"].tensors
    assert specs(world.tensors) == specs(plain)
    expected = logits(base, TOKENS)
    off, plainly_off = (
        ((logits(base, TOKENS, as_arrays(tensors, tmp_path), world.quantization) - expected) ** 2).mean()
        for tensors in (world.tensors, plain)
    )
    assert off < 0.9 * plainly_off


def test_a_mode_without_a_grid_is_rounded_by_mlx(base: Path, tmp_path: Path) -> None:
    variant = Variant("v", quantization=Quantization(4, 32, "mxfp4"))
    world = World(base, tmp_path / "made", variant)
    world.round(TOKENS)
    plain = stream(base, None, [variant], structure=world.structure)["v"].tensors
    assert {name: bytes(tensor.data) for name, tensor in world.tensors.items()} == {
        name: bytes(tensor.data) for name, tensor in plain.items()
    }
    assert sum(made.plain for made in world.made.values()) == len(world.quantization)


def test_experts_that_see_little_are_counted(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", BY_NAME["qwen3_moe"])
    few, many = World(base, tmp_path / "few", FOUR), World(base, tmp_path / "many", FOUR)
    few.round(text(1, 8))  # 16 places for 8 experts of two layers, where each needs 16
    many.round(text(40, 30))
    assert 64 * LEAST == 16
    unseen = sum(made.unseen for made in few.made.values())
    assert 12 <= unseen <= 24  # three stacks of four experts in each of two layers
    assert sum(made.unseen for made in many.made.values()) == 0


def test_the_head_of_a_tied_embedding_is_measured_without_the_adapter(base: Path) -> None:
    found = head_moments(load_base(base)[0], TOKENS, "model.embed_tokens")
    model, _ = load_base(base)
    model.set_dtype(mx.float32)
    inputs = np.array(model.model(TOKENS), np.float64).reshape(-1, 128)
    assert found is not None
    assert np.allclose(found, inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-5)
    assert head_moments(load_base(base)[0], TOKENS, "") is None


def test_layers_that_are_called_in_another_order_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(base, tmp_path / "made", FOUR)
    blocks = [*world.structure.blocks]
    at = blocks.index("model.layers.1")
    blocks[at], blocks[at + 1] = blocks[at + 1], blocks[at]
    monkeypatch.setattr(type(world.structure), "blocks", property(lambda _: tuple(blocks)))
    with pytest.raises(EngineError) as caught:
        world.round(TOKENS)
    assert caught.value.message == 'test: the model calls "model.layers.2" after "model.layers.1".'


def test_inputs_that_are_not_finite_are_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(base, tmp_path / "made", FOUR)
    real = stream_module.as_float32

    def broken(values: Values) -> dict[str, mx.array]:
        found = real(values)
        return {n: a * float("inf") if n.endswith("1.mlp.up_proj.weight") else a for n, a in found.items()}

    monkeypatch.setattr(stream_module, "as_float32", broken)
    with pytest.raises(EngineError, match=r"test: the inputs of model.layers.1.mlp.down_proj are not finite"):
        world.round(TOKENS)
