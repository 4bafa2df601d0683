"""`exact`: the values in the GGUF are those of the quantized weights, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from builder.evaluate.worker.llama import LlamaCpp, LlamaFailed
from builder.gguf.architecture import GgufRefused
from builder.gguf.formats import nbytes, type_of
from builder.gguf.library import LlamaMissing
from builder.gguf.settings import Unwritable
from builder.gguf.vocabulary import vocabulary
from builder.gguf.weights import unpacked
from builder.gguf.writing import GgufMissing, planned, write
from tests.publish.gguf.models import CONFIGS, make_model, write_tokenizer

gguf = pytest.importorskip("gguf")


def quantized(
    folder: Path, bits: int, group: int, config: str = "llama", dtype: Any = mx.float16
) -> dict[str, Any]:
    """A folder whose matrices are quantized, and its tensors by name."""
    _, tensors = make_model(folder, CONFIGS[config], dtype=dtype)
    made = {}
    for name, value in tensors.items():
        if value.ndim < 2 or name.endswith("mlp.gate.weight"):
            made[name] = value
            continue
        path = name.removesuffix(".weight")
        made[name], made[f"{path}.scales"], made[f"{path}.biases"] = mx.quantize(value, group, bits)
    mx.save_safetensors(str(folder / "model.safetensors"), made, metadata={"format": "mlx"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**said, "quantization": {"bits": bits, "group_size": group}})
    )
    return made


def read(file: Path) -> dict[str, Any]:
    """Tensor -> float32 values, by the package `gguf`."""
    return {
        each.name: gguf.quants.dequantize(each.data, each.tensor_type)
        for each in gguf.GGUFReader(file).tensors
    }


def write_all(folder: Path, wanted: str) -> tuple[Path, Any]:
    made, weights = planned(folder, "m", wanted)
    file = folder.parent / f"{wanted}.gguf"
    write(
        file,
        made,
        weights,
        target="m",
        wanted=wanted,
        about={"name": "m"},
        step=lambda count: None,
    )
    return file, made


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (5, 64), (5, 128)])
@pytest.mark.parametrize("config", ["qwen3", "qwen3_moe"])
def test_no_value_differs(tmp_path: Path, bits: int, group: int, config: str) -> None:
    tensors = quantized(tmp_path / "m", bits, group, config) if (config, group) != ("qwen3_moe", 128) else {}
    if not tensors:
        pytest.skip("its experts have 64 columns")
    file, made = write_all(tmp_path / "m", "exact")
    values, compared = read(file), 0
    for tensor, weight, kind in made.tensors:
        path = tensor.source.removesuffix(".weight")
        stored = tensors[tensor.source]
        if weight.affine is None:
            assert kind in ("F32", "F16")
            expected = np.array(stored.astype(mx.float32))
        else:
            assert kind == {4: "Q4_1", 5: "Q5_1"}[bits]
            scales, biases = (tensors[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            codes = mx.dequantize(stored, mx.ones_like(scales), mx.zeros_like(biases), group, bits)
            each = mx.repeat(scales, group, -1), mx.repeat(biases, group, -1)
            expected = np.array(codes * each[0] + each[1])
            compared += 1
        assert np.abs(values[tensor.name] - expected).max() == 0, tensor.name
    assert compared > 10


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_read_as_mlx_packs_them(bits: int) -> None:
    packed, scales, biases = mx.quantize(mx.random.normal((4, 128), key=mx.random.key(bits)), 64, bits)
    expected = mx.dequantize(packed, mx.ones_like(scales), mx.zeros_like(biases), 64, bits)
    assert np.array_equal(unpacked(np.array(packed), bits), np.array(expected).astype(np.uint8))


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    make_model(tmp_path / "m", CONFIGS["llama"])
    first = write_all(tmp_path / "m", "Q8_0")[0].read_bytes()
    (tmp_path / "Q8_0.gguf").unlink()
    assert write_all(tmp_path / "m", "Q8_0")[0].read_bytes() == first


def test_what_is_refused(tmp_path: Path) -> None:
    for bits, said in ((6, "has 6 bits"), (8, "has 8 bits"), (3, "has 3 bits")):
        quantized(tmp_path / f"m{bits}", bits, 64)
        with pytest.raises(GgufRefused, match=said):
            planned(tmp_path / f"m{bits}", "m", "exact")
    quantized(tmp_path / "bf16", 4, 64, dtype=mx.bfloat16)
    tensors = dict(mx.load(str(tmp_path / "bf16/model.safetensors")))
    tensors["lm_head.scales"] = tensors["lm_head.scales"] * mx.array(2.0**-20, mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "bf16/model.safetensors"), tensors)
    with pytest.raises(GgufRefused, match='scales of "lm_head.weight" are no float16 numbers'):
        write_all(tmp_path / "bf16", "exact")
    with pytest.raises(GgufRefused, match="is quantized: Q8_0 is made from weights that are not"):
        planned(tmp_path / "m6", "m", "Q8_0")
    other = tmp_path / "other"
    make_model(other, CONFIGS["qwen3_moe"])
    config = json.loads((other / "config.json").read_text())
    for change, said in (
        ({"model_type": "mamba"}, r'model_type "mamba" cannot be written \(possible: llama, mistral'),
        ({"norm_topk_prob": False}, "norm_topk_prob is false, and llama.cpp computes with true"),
        ({"hidden_act": "relu"}, "hidden_act = relu, and llama.cpp computes with silu"),
        ({"rope_scaling": {"type": "longrope"}}, 'its rotary embedding is scaled by "longrope"'),
        ({"mlp_only_layers": [0]}, "some of its layers have no experts"),
    ):
        (other / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(GgufRefused, match=said):
            planned(other, "m", "F16")


def test_an_unknown_way_to_cut_text_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert vocabulary(tmp_path, 320).pre == "gpt-2"
    assert vocabulary(tmp_path, 320).tokens[-1] == "[PAD319]"
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    for change in ({"pre_tokenizer": {"type": "Whitespace"}}, {"normalizer": {"type": "Lowercase"}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(Unwritable, match="cuts text in a way that llama.cpp may not know"):
            vocabulary(tmp_path, 320)


def test_widths_that_no_block_divides_stay_in_float16(tmp_path: Path) -> None:
    make_model(tmp_path / "m", {**CONFIGS["llama"], "intermediate_size": 200})
    made, _ = planned(tmp_path / "m", "m", "Q4_0")
    kinds = {tensor.name: kind for tensor, _, kind in made.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert made.nbytes == sum(nbytes(kind, weight) for _, weight, kind in made.tensors)
    assert abs(sum(made.mix.values()) - 1) < 1e-9
    assert type_of("F16", *made.tensors[0][:2]) == "F16"


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.gguf.writing.find_spec", lambda name: None)
    with pytest.raises(GgufMissing, match="needs the package `gguf`, which is not installed"):
        planned(tmp_path, "t", "exact")
    monkeypatch.setattr("builder.gguf.library.PACKAGE", "no-such-package")
    with pytest.raises(LlamaMissing, match="and it is not installed"):
        LlamaCpp(tmp_path / "model.gguf", 10)
    monkeypatch.setattr("builder.gguf.library.PACKAGE", "gguf")
    with pytest.raises(LlamaMissing, match="is installed"):
        LlamaCpp(tmp_path / "model.gguf", 10)


def test_a_file_that_llama_cpp_cannot_load_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(LlamaFailed, match=r"llama.cpp: model.gguf: cannot be loaded"):
        LlamaCpp(tmp_path / "model.gguf", 10)
