"""PEFT adapters on tensors that mlx-lm changes or drops while it loads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.evaluate.worker.sources import reference_model
from builder.sources.adapters.places import placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.sources.adapters.tensors import slice_digests
from builder.spec.types import Quantization, Variant
from builder.weights.structure import block_of
from tests.architectures import MAMBA, SCALING, checkpoint, dense, hybrid, moe
from tests.comparison import stream
from tests.sources.adapters.test_places import F32, RANK, SCALE, WRAPPED, refusal, save_peft


def original_experts(folder: Path) -> Path:
    """A mixture of experts with one tensor for each expert, as on the hub."""
    return checkpoint(folder, moe("qwen3_moe", label="original", original=True, dtype="float32"))


def experts_of(*numbers: int) -> dict[str, mx.array]:
    """PEFT's pairs for some of the experts of layer 1."""
    tensors = {}
    for number in numbers:
        path = f"base_model.model.model.layers.1.mlp.experts.{number}.up_proj"
        tensors[f"{path}.lora_A.weight"] = mx.random.normal((RANK, 64), key=mx.random.key(number))
        tensors[f"{path}.lora_B.weight"] = mx.random.normal((64, RANK), key=mx.random.key(10 + number))
    return tensors


def test_some_of_the_experts_go_through_the_checkpoint(tmp_path: Path) -> None:
    base = original_experts(tmp_path / "base")
    tensors = experts_of(0, 2)
    adapter = save_peft(tmp_path / "peft", tensors)
    name = "model.layers.1.mlp.switch_mlp.up_proj.weight"
    ours, plain = (
        np.frombuffer(stream(base, folder, [F32])["f32"].tensors[name].data, np.float32).reshape(4, 64, 64)
        for folder in (adapter.path, None)
    )
    for number in range(4):
        path = f"base_model.model.model.layers.1.mlp.experts.{number}.up_proj"
        delta = np.zeros((64, 64), np.float32)
        if number in (0, 2):
            a, b = (np.array(tensors[f"{path}.lora_{letter}.weight"]) for letter in "AB")
            delta = SCALE * b @ a
        np.testing.assert_allclose(ours[number], plain[number] + delta, rtol=1e-4, atol=1e-4)


def test_a_slice_of_each_block_that_is_reached(tmp_path: Path) -> None:
    """A norm that mlx-lm shifts goes through the checkpoint. Its digest is that of its own block only."""
    base = checkpoint(
        tmp_path / "base",
        hybrid("qwen3_next", label="original", full_attention_interval=2, original=True, dtype="float32"),
    )
    places, digests = places_of(inspect(base)), []
    for number, value in enumerate((1.0, 2.0)):
        tensors = {"base_model.model.model.norm.weight": mx.full((64,), value)}
        tensors["base_model.model.model.layers.0.input_layernorm.weight"] = mx.ones((64,))
        saved = ["model.norm", "input_layernorm"]
        adapter = save_peft(tmp_path / f"peft{number}", tensors, modules_to_save=saved)
        info = placed(read_adapter(adapter), adapter, places)
        assert {tensor.through for tensor in info.tensors} == {
            name.removeprefix("base_model.model.") for name in tensors
        }
        digests.append(slice_digests(info, block_of))
    assert digests[0].keys() == digests[1].keys() == {"model.norm", "model.layers.0"}
    assert digests[0]["model.layers.0"] == digests[1]["model.layers.0"]
    assert digests[0]["model.norm"] != digests[1]["model.norm"]


def test_what_a_build_is_compared_with_goes_the_same_way(tmp_path: Path) -> None:
    base = checkpoint(
        tmp_path / "base",
        hybrid("falcon_h1", label="original", original=True, dtype="float32", mamba_d_ssm=128,
               attention_in_multiplier=1.3, **MAMBA),
    )  # fmt: skip
    path = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"base_model.model.{path}.lora_A.weight": mx.ones((RANK, 64)),
        f"base_model.model.{path}.lora_B.weight": mx.ones((64, RANK)),
    }
    adapter = save_peft(tmp_path / "peft", tensors)
    shard = stream(base, adapter.path, [F32])["f32"].tensors[f"{path}.weight"]
    settings = {"directory": str(base), "dequantize": False, "trust_remote_code": False}
    model = reference_model(settings, {"name": "a", "base": "b", "path": str(adapter.path)}).model
    weight = dict(tree_flatten(model.parameters()))[f"{path}.weight"]
    assert bytes(shard.data) == np.array(weight).tobytes()
    stored = mx.load(str(base / "model.safetensors"))
    assert isinstance(stored, dict)
    expected = (np.array(stored[f"{path}.weight"]) + SCALE * RANK) * 1.3
    np.testing.assert_allclose(np.array(weight), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "is of a vision or audio tower"),
        ("model.visual.blocks.0.attn.qkv", "is of a vision or audio tower"),
        ("model.audio_tower.layers.0.fc1", "is of a vision or audio tower"),
        ("model.multi_modal_projector.linear_1", "is of a vision or audio tower"),
        ("model.language_model.layers.7.mlp.down_proj", 'matches nothing in base "b"'),
    ],
)
def test_a_tower_is_named_as_such(path: str, says: str, tmp_path: Path) -> None:
    """Also where every other tensor of the adapter needs a renaming to find its place."""
    structure = inspect(checkpoint(tmp_path / "base", WRAPPED["gemma3"]))
    pair = {"A": mx.ones((RANK, 128)), "B": mx.ones((64, RANK))}
    paths = ("model.language_model.layers.0.mlp.down_proj", path)
    tensors = {f"base_model.model.{p}.lora_{k}.weight": t for p in paths for k, t in pair.items()}
    said = refusal(structure, save_peft(tmp_path / "peft", tensors))
    assert says in said
    assert "layers.0.mlp.down_proj" not in said


def test_a_module_that_mlx_lm_drops(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", dense("qwen3", dtype="float32", tie_word_embeddings=True))
    structure = replace(inspect(base), dropped=("model.mtp",))
    pair = {"A": mx.ones((RANK, 64)), "B": mx.ones((64, RANK))}
    tensors = {f"base_model.model.model.mtp.layers.0.o_proj.lora_{k}.weight": t for k, t in pair.items()}
    said = refusal(structure, save_peft(tmp_path / "peft", tensors))
    assert "is of a part of the base that mlx-lm does not load" in said


@pytest.mark.parametrize(
    ("model", "leaf"),
    [("qwen3_next", "input_layernorm"), ("falcon_h1", "input_layernorm"), ("falcon_h1", "self_attn.q_proj")],
)
def test_numbers_that_mlx_lm_changed_before(model: str, leaf: str, tmp_path: Path) -> None:
    """A base that mlx-lm saved: its norms hold 1 + weight, its weights are multiplied."""
    changes = {**MAMBA, "mamba_d_ssm": 128} if model == "falcon_h1" else {"full_attention_interval": 2}
    structure = inspect(checkpoint(tmp_path / "base", hybrid(model, dtype="float32", **changes)))
    at = f"base_model.model.model.layers.0.{leaf}"
    tensors = {f"{at}.weight": mx.ones((64,))}
    if leaf.endswith("proj"):
        tensors = {f"{at}.lora_A.weight": mx.ones((RANK, 64)), f"{at}.lora_B.weight": mx.ones((64, RANK))}
    adapter = save_peft(tmp_path / "peft", tensors, modules_to_save=["input_layernorm"])
    if f"model.layers.0.{leaf}.weight" not in structure.changed_before:
        assert model == "falcon_h1"
        return
    assert "is for numbers that mlx-lm changed when it made this base" in refusal(structure, adapter)


def test_dora_on_a_projection_that_is_split_and_quantized(tmp_path: Path) -> None:
    """W + scale B A, each row brought to the length m, as PEFT merges it. Then the rows go to gate and up."""
    changes = {"layer_types": ["attention", "attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
               "shared_intermediate_size": 128}  # fmt: skip
    base = checkpoint(
        tmp_path / "base", hybrid("granitemoehybrid", dtype="float32", **SCALING, **MAMBA, **changes)
    )
    file = str(base / "model.safetensors")
    stored = {name: np.array(array) for name, array in dict(mx.load(file)).items()}
    for layer in range(2):
        at, to = f"model.layers.{layer}.mlp", f"model.layers.{layer}.shared_mlp"
        halves = [stored.pop(f"{at}.{name}_proj.weight") for name in ("gate", "up")]
        stored[f"{to}.input_linear.weight"] = np.concatenate(halves)
        stored[f"{to}.output_linear.weight"] = stored.pop(f"{at}.down_proj.weight")
    mx.save_safetensors(file, {name: mx.array(array) for name, array in stored.items()})
    path, rng = "model.layers.0.shared_mlp.input_linear", np.random.default_rng(0)
    a, b = rng.normal(size=(RANK, 64)).astype("f4"), rng.normal(size=(256, RANK)).astype("f4")
    m = rng.uniform(1, 2, 256).astype("f4")
    tensors = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": m}
    named = {f"base_model.model.{path}.{name}": mx.array(array) for name, array in tensors.items()}
    adapter = save_peft(tmp_path / "peft", named, use_dora=True)
    variants = [F32, Variant("5bit", quantization=Quantization(5, 32))]
    made = stream(base, adapter.path, variants)
    weight = stored[f"{path}.weight"] + SCALE * b @ a
    expected = m[:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)
    for name, rows in (("gate", slice(0, 128)), ("up", slice(128, 256))):
        shard = made["f32"].tensors[f"model.layers.0.mlp.{name}_proj.weight"]
        array = np.frombuffer(shard.data, "f4").reshape(128, 64)
        np.testing.assert_allclose(array, expected[rows], rtol=1e-4, atol=1e-6)
        assert f"model.layers.0.mlp.{name}_proj.scales" in made["5bit"].tensors
