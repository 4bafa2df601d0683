"""Adapters: what PEFT's tensors become, and what is refused because it would be fused wrongly."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding

from builder.errors import SourceError, SourceInvalid
from builder.sources.adapters import tensors as adapter_bytes
from builder.sources.adapters.reading import adapter_files, read_adapter
from builder.sources.adapters.tensors import check_finite, load_tensors, slice_digests
from builder.spec.types import Adapter
from builder.weights.structure import block_of

PATH = "model.layers.0.self_attn.q_proj"
AT = f"base_model.model.{PATH}"
EMBEDDING = "base_model.model.model.embed_tokens"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def write(folder: Path, name: str, config: object, tensors: Mapping[str, mx.array]) -> Adapter:
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text)
    mx.save_safetensors(str(folder / name), dict(tensors))
    return Adapter("a", "b", folder)


def peft(folder: Path, tensors: Mapping[str, mx.array], **changes: object) -> Adapter:
    return write(folder / "p", "adapter_model.safetensors", {**CONFIG, **changes}, tensors)


def mlx(folder: Path, tensors: Mapping[str, mx.array], **changes: object) -> Adapter:
    config = {"lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}, **changes}
    return write(folder / "m", "adapters.safetensors", config, tensors)


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def peft_pair() -> dict[str, mx.array]:
    return {f"{AT}.lora_A.weight": random(4, 16), f"{AT}.lora_B.weight": random(8, 4, seed=1)}


def mlx_pair() -> dict[str, mx.array]:
    return {f"{PATH}.lora_a": random(16, 4), f"{PATH}.lora_b": random(4, 8, seed=1)}


# -- what PEFT's tensors become --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".weight"])  # older PEFT stored the vector without .weight
def test_dora_is_m_times_the_unit_rows(tmp_path: Path, suffix: str) -> None:
    """m (W + s B A) / |W + s B A|, the norm per output (Liu et al., 2024), through mlx-lm's own layer."""
    magnitude = mx.abs(random(8, seed=2)) + 1
    tensors = {**peft_pair(), f"{AT}.lora_magnitude_vector{suffix}": magnitude}
    info = read_adapter(peft(tmp_path, tensors, use_dora=True))
    assert (info.fine_tune_type, info.scales) == ("dora", {PATH: 2.0})
    loaded = load_tensors(info)
    layer = DoRALinear.from_base(nn.Linear(16, 8, bias=False), r=4, scale=2.0)
    for part in ("lora_a", "lora_b", "m"):
        setattr(layer, part, loaded[f"{PATH}.{part}"])
    moved = layer.linear.weight + 2.0 * tensors[f"{AT}.lora_B.weight"] @ tensors[f"{AT}.lora_A.weight"]
    expected = magnitude[:, None] * moved / mx.linalg.norm(moved, axis=1, keepdims=True)
    assert mx.allclose(layer.fuse().weight, expected, atol=1e-5).item()


def test_an_embedding_is_converted(tmp_path: Path) -> None:
    """W + s (B A)^T: PEFT keeps A as (r, tokens) and B as (dims, r)."""
    a, b = random(4, 20), random(16, 4, seed=1)
    info = read_adapter(
        peft(tmp_path, {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b})
    )
    shapes = {tensor.name: tensor.shape for tensor in info.tensors}
    assert shapes == {"model.embed_tokens.lora_a": (20, 4), "model.embed_tokens.lora_b": (4, 16)}
    loaded = load_tensors(info)
    layer = LoRAEmbedding.from_base(nn.Embedding(20, 16), r=4, scale=2.0)
    layer.lora_a, layer.lora_b = loaded["model.embed_tokens.lora_a"], loaded["model.embed_tokens.lora_b"]
    assert mx.allclose(layer.fuse().weight, layer.embedding.weight + 2.0 * (b @ a).T, atol=1e-5).item()


@pytest.mark.parametrize(
    ("stored", "config"),
    [
        ("base_model.model.lm_head.weight", {"modules_to_save": ["lm_head"]}),
        ("base_model.model.lm_head.modules_to_save.weight", {"modules_to_save": ["lm_head"]}),
        ("base_model.model.lm_head.modules_to_save.default.weight", {}),
        ("base_model.model.lm_head.base_layer.weight", {}),
        ("base_model.model.lm_head.weight", {}),  # save_embedding_layers
    ],
)
def test_a_module_saved_whole_is_a_plain_weight(
    tmp_path: Path, stored: str, config: dict[str, object]
) -> None:
    head = random(8, 16, seed=3)
    info = read_adapter(peft(tmp_path, {**peft_pair(), stored: head}, **config))
    assert mx.array_equal(load_tensors(info)["lm_head.weight"], head).item()
    assert "lm_head" not in info.scales


def test_the_scale_is_part_of_the_slice(tmp_path: Path) -> None:
    once = slice_digests(read_adapter(peft(tmp_path, peft_pair())), block_of)
    again = slice_digests(read_adapter(peft(tmp_path, peft_pair())), block_of)
    other = slice_digests(read_adapter(peft(tmp_path, peft_pair(), lora_alpha=16)), block_of)
    assert once == again != other
    assert once.keys() == other.keys() == {"model.layers.0"}


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 16}, "have rank 4, but adapter_config.json says 16"),
        ({"rank_pattern": {"q_proj": 2}}, "have rank 4, but adapter_config.json says 2"),
        ({"r": True}, "r = True is not a rank"),
        ({"r": 4.0}, "r = 4.0 is not a rank"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern = \['q_proj'\] is not a table"),
        ({"alpha_pattern": {"q_proj(": 1}}, "alpha_pattern has a pattern that is not a valid regex"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "alpha_pattern has a pattern that is too complex"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "alpha_pattern has a pattern that is too complex"),
        ({"alpha_pattern": {"q_proj": "8"}}, "lora_alpha = '8' is not a finite number"),
        ({"init_lora_weights": "pissa_niter_16"}, "starts from a changed base"),
        ({"init_lora_weights": "loftq"}, "starts from a changed base"),
        ({"use_dora": "yes"}, "use_dora = 'yes' is not true or false"),
        ({"use_dora": True}, f"has no {PATH}.m beside it"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"target_parameters": "mlp.experts"}, "target_parameters = 'mlp.experts' is not a list of names"),
        ({"peft_type": ["LORA"]}, r"peft_type \['LORA'\] is not LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type 'PROMPT_TUNING' is not LORA"),
    ],
)
def test_peft_settings_that_would_be_fused_wrongly(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(SourceInvalid, match=says):
        read_adapter(peft(tmp_path, peft_pair(), **changes))


@pytest.mark.parametrize(
    ("more", "config", "says"),
    [
        ({f"{AT}.lora_B.bias": (8,)}, {}, r'q_proj.lora_B.bias" is of a kind that cannot be fused here'),
        ({f"{AT}.bias": (8,)}, {}, r'q_proj.bias" is of a kind that cannot be fused here'),
        ({f"{PATH}.lora_A.weight": (4, 16)}, {}, r'does not begin with "base_model.model."'),
        ({f"{AT}.lora_magnitude_vector": (8,)}, {}, r'q_proj.m" is a DoRA magnitude'),
        (
            {f"base_model.model.lm_head.{leaf}": (8, 16) for leaf in ("weight", "base_layer.weight")},
            {},
            'names "lm_head.weight" a second time',
        ),
        (
            {f"{AT}.lora_magnitude_vector": (8,), f"{EMBEDDING}.lora_embedding_A": (4, 20),
             f"{EMBEDDING}.lora_embedding_B": (16, 4), f"{EMBEDDING}.lora_magnitude_vector": (16,)},
            {"use_dora": True},
            "is DoRA on an embedding, not supported",
        ),
    ],
)  # fmt: skip
def test_peft_tensors_that_have_no_place(
    tmp_path: Path, more: dict[str, tuple[int, ...]], config: dict[str, object], says: str
) -> None:
    tensors = {**peft_pair(), **{name: random(*shape) for name, shape in more.items()}}
    with pytest.raises(SourceInvalid, match=says):
        read_adapter(peft(tmp_path, tensors, **config))


@pytest.mark.parametrize(
    ("tensors", "changes", "says"),
    [
        ({}, {"lora_parameters": {"scale": 2.0, "rank": 8}}, "rank 4, but adapter_config.json says 8"),
        ({}, {"fine_tune_type": "dora"}, f"has no {PATH}.m beside it"),
        ({}, {"fine_tune_type": ["lora"]}, r"fine_tune_type \['lora'\] is not one of lora, dora, full"),
        ({f"{PATH}.m": (8,)}, {}, r'q_proj.m" is not part of a lora adapter'),
        ({f"{PATH}.lora_b": (3, 8)}, {}, "have ranks 4 and 3"),
        ({f"{PATH}.lora_b": (2, 8, 4)}, {}, "which do not fit together"),
        ({f"{PATH}.lora_a": (16,), f"{PATH}.lora_b": (8,)}, {}, "which do not fit together"),
        ({f"{PATH}.lora_a": (3, 4, 16), f"{PATH}.lora_b": (2, 8, 4)}, {}, "which do not fit together"),
    ],
)
def test_mlx_adapters_that_would_be_fused_wrongly(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], changes: dict[str, object], says: str
) -> None:
    stored = {**mlx_pair(), **{name: random(*shape) for name, shape in tensors.items()}}
    with pytest.raises(SourceInvalid, match=says):
        read_adapter(mlx(tmp_path, stored, **changes))


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN", "Infinity", "-1e999", "true", "null", '"2"'])
def test_a_scale_that_is_no_finite_number(tmp_path: Path, number: str) -> None:
    text = f'{{"lora_parameters": {{"rank": 4, "scale": {number}}}}}'
    with pytest.raises(SourceInvalid, match="lora_parameters.scale = .* is not a finite number"):
        read_adapter(write(tmp_path / "m", "adapters.safetensors", text, mlx_pair()))


def test_integers_are_no_adapter(tmp_path: Path) -> None:
    tensors = {name: tensor.astype(mx.int32) for name, tensor in mlx_pair().items()}
    with pytest.raises(SourceInvalid, match="is I32, not one of F32, F16, BF16"):
        read_adapter(mlx(tmp_path, tensors))


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    declared = mlx(tmp_path, mlx_pair())
    mx.save_safetensors(str(declared.path / "adapter_model.safetensors"), peft_pair())
    with pytest.raises(SourceInvalid, match=r"holds both adapters.safetensors and adapter_model.safetensors"):
        adapter_files(declared)


# -- finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_found_in_any_piece(
    tmp_path: Path, dtype: mx.Dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_bytes, "_PIECE", 64)
    tensors = {name: tensor.astype(dtype) for name, tensor in mlx_pair().items()}
    declared = mlx(tmp_path, tensors)
    check_finite(read_adapter(declared), declared)
    bad = tensors[f"{PATH}.lora_b"]
    bad[3, 7] = value
    mx.eval(bad)
    declared = mlx(tmp_path, tensors)
    with pytest.raises(SourceInvalid, match=rf'tensor "{PATH}.lora_b" holds NaN or infinity'):
        check_finite(read_adapter(declared), declared)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_an_untrained_adapter_is_refused(tmp_path: Path, dtype: mx.Dtype) -> None:
    """mlx_lm.lora and PEFT start with lora_b zero: such an adapter is the plain base under another name."""
    tensors = {name: tensor.astype(dtype) for name, tensor in mlx_pair().items()}
    tensors[f"{PATH}.lora_b"] = -mx.zeros_like(tensors[f"{PATH}.lora_b"])
    declared = mlx(tmp_path, tensors)
    with pytest.raises(SourceInvalid) as caught:
        check_finite(read_adapter(declared), declared)
    assert caught.value.message == (
        f"adapter.a: {declared.path / 'adapters.safetensors'}: changes nothing: every lora_b is zero,"
        " as before training."
    )
    tensors[f"{PATH}.lora_b"][3, 7] = 1e-7
    declared = mlx(tmp_path, tensors)
    check_finite(read_adapter(declared), declared)


# -- anything at all -------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "bias",
     "modules_to_save", "init_lora_weights", "fine_tune_type", "lora_parameters", "fan_in_fan_out"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
def test_any_config_raises_nothing_but_source_errors(tmp_path: Path, changes: dict[str, object]) -> None:
    for declared in (peft(tmp_path, peft_pair(), **changes), mlx(tmp_path, mlx_pair(), **changes)):
        with contextlib.suppress(SourceError):
            read_adapter(declared)
