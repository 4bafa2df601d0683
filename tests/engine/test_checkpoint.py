"""Checkpoints that another program quantized: read, repaired, or refused with the name of the method."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.checkpoint import ForeignQuantization, makes_numbers
from builder.engine.inspect import inspect as inspected
from builder.engine.loading import load
from builder.weights.foreign import KNOWN, Foreign, foreign, original_name
from builder.weights.shards import RawTensor
from tests.architectures import Architecture, checkpoint, dense

CODES = {mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "base", Architecture("llama", "dense"))


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def write(folder: Path, tensors: dict[str, RawTensor]) -> None:
    """One safetensors file with types that numpy lacks."""
    head: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.data)
        head[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    for old in folder.glob("model*"):
        old.unlink()
    data = b"".join(bytes(tensor.data) for tensor in tensors.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def stored(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in folder.glob("model*.safetensors"):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    return found


def plain(value: mx.array) -> RawTensor:
    return RawTensor("F32", tuple(value.shape), np.array(value.astype(mx.float32)).tobytes())


def in_fp8(folder: Path, scale_shape: tuple[int, ...], code: str = "F8_E4M3") -> dict[str, mx.array]:
    """Turns the projections into FP8 with a scale of that shape. Returns what they must become."""
    tensors, expected = {}, {}
    for name, value in stored(folder).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = plain(value)
            continue
        packed = mx.to_fp8(value.astype(mx.float32) * 64)
        expected[name] = mx.from_fp8(packed, dtype=mx.float32) / 64
        tensors[name] = RawTensor(code, tuple(value.shape), np.array(packed).tobytes())
        tensors[f"{name}_scale_inv"] = plain(mx.full(scale_shape, 1 / 64))
        tensors[name.replace(".weight", ".activation_scale")] = plain(mx.array(0.5))
    write(folder, tensors)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": None})
    return expected


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fp8_with_one_scale_each_becomes_numbers(base: Path, shape: tuple[int, ...]) -> None:
    expected = in_fp8(base, shape)
    loaded = load(base)
    weights = dict(loaded.model.parameters().items())
    assert "quantization_config" not in loaded.config
    assert list(loaded.repairs) == ["fp8"]
    assert not hasattr(loaded.model, "sanitize") or "sanitize" not in vars(loaded.model)
    from mlx.utils import tree_flatten

    found = dict(tree_flatten(weights))
    for name, value in expected.items():
        assert found[name].dtype == mx.bfloat16
        assert mx.array_equal(found[name].astype(mx.float32), value.astype(mx.bfloat16).astype(mx.float32))
    assert inspected(base).repairs == loaded.repairs


@pytest.mark.parametrize(("shape", "code"), [((1, 1, 2), "F8_E4M3"), ((4, 1), "F8_E4M3"), ((), "F8_E5M2")])
def test_other_fp8_is_refused_by_name(base: Path, shape: tuple[int, ...], code: str) -> None:
    in_fp8(base, shape, code)
    with pytest.raises(ForeignQuantization, match=r"quantized with fp8 .*_proj.weight\" is FP8 with scales"):
        load(base)


def test_fp8_without_a_word_in_the_config_is_refused(base: Path) -> None:
    in_fp8(base, ())
    configure(base, quantization_config={})
    with pytest.raises(ForeignQuantization, match="quantized with FP8 .the type of its tensors."):
        load(base)


def test_fp8_that_an_architecture_knows_is_left_to_it() -> None:
    from mlx_lm.models import deepseek_v3, llama, mistral3, qwen3

    assert makes_numbers(deepseek_v3.Model)
    assert makes_numbers(mistral3.Model)  # through mistral4
    assert not makes_numbers(llama.Model)
    assert not makes_numbers(qwen3.Model)


LEFT_OVER: list[dict[str, Any]] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"load_in_8bit": True},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "mxfp4"},
    {"quant_method": "compressed-tensors", "format": "float-quantized"},
    {"quant_method": "something new"},
]


@pytest.mark.parametrize("settings", LEFT_OVER, ids=str)
def test_a_left_over_of_plain_weights_goes(base: Path, settings: dict[str, Any]) -> None:
    before = stored(base)
    configure(base, quantization_config=settings)
    loaded = load(base)
    assert "quantization_config" not in loaded.config
    assert "quantization" not in loaded.config
    assert list(loaded.repairs) == ["quantization_config"]
    from mlx.utils import tree_flatten

    found = dict(tree_flatten(loaded.model.parameters()))
    assert all(mx.array_equal(found[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "gptq", "bits": 8}, "gptq"),
        ({"quant_method": "awq", "bits": 3}, "awq"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "compressed-tensors"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
        ({"bits": 4}, "a method without a name"),
    ],
)
@pytest.mark.parametrize("dequantize", [False, True])
def test_packed_weights_that_mlx_lm_cannot_read_are_named(
    base: Path, settings: dict[str, Any], method: str, dequantize: bool
) -> None:
    tensors = {name: plain(value) for name, value in stored(base).items()}
    name = "model.layers.0.mlp.down_proj"
    del tensors[f"{name}.weight"]
    tensors[f"{name}.qweight"] = RawTensor("I32", (16, 64), bytes(4 * 16 * 64))
    tensors[f"{name}.g_idx"] = RawTensor("I32", (128,), bytes(4 * 128))
    write(base, tensors)
    configure(base, quantization_config=settings)
    with pytest.raises(ForeignQuantization, match=f"quantized with {method} .quantization_config") as caught:
        load(base, dequantize=dequantize)
    assert "parameters not in model" not in str(caught.value)
    assert "original, unquantized checkpoint" in str(caught.value)


def test_the_method_is_found_wherever_it_is_said() -> None:
    method = {"quant_method": "hqq"}
    assert foreign({"quantization_config": method}) == Foreign(
        "hqq", "quantization_config in config.json", method
    )
    inner = foreign({"text_config": {"quantization_config": method}})
    assert inner is not None
    assert inner.key == "text_config.quantization_config in config.json"
    assert foreign({"compression_config": {"quant_method": "compressed-tensors"}}) is not None
    beside = foreign({}, {"quantization": {"quant_algo": "FP8"}})
    assert beside is not None
    assert (beside.method, beside.key) == ("modelopt", "hf_quant_config.json")
    assert foreign({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}) is None  # mlx's own
    assert [foreign({"quantization_config": value}) for value in (None, 7, "x", [], {})] == [None] * 5


def test_the_methods_are_those_of_mlx_lm() -> None:
    from mlx_lm.utils import load_model

    source = inspect.getsource(load_model)
    named = set(re.findall(r'quant_method == "([\w-]+)"', source))
    for group in re.findall(r"quant_method in \(([^)]*)\)", source):
        named |= set(re.findall(r'"([\w-]+)"', group))
    assert named == KNOWN


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "unsloth/llama-3-8b-Instruct"),
        ("TheBloke/Mistral-7B-GPTQ", "TheBloke/Mistral-7B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("org/x-quantized.w4a16", "org/x"),
        ("Qwen/Qwen3-8B", None),
        ("mlx-community/Qwen3-8B-4bit", None),  # mlx reads it
        ("-bnb-4bit", None),
    ],
)
def test_the_name_of_the_original(name: str, original: str | None) -> None:
    assert original_name(name) == original


def test_what_mlx_quantized_is_none_of_this(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    folder = checkpoint(tmp_path / "base", dense("llama"))
    model, config = quantize_model(*load_model(folder), 32, 4)
    save_model(tmp_path / "packed", model)
    save_config(config, tmp_path / "packed" / "config.json")
    assert load(tmp_path / "packed").repairs == {}
    assert load(tmp_path / "packed", dequantize=True).repairs == {}
