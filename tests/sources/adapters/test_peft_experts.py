"""Adapters that PEFT itself made of the fused experts of transformers: weights and logits as PEFT merges.

The models are tiny and random. They are saved by transformers, with the names of the hub. Needs torch and
peft: the dependency group `peft` (`uv sync --group peft`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.errors import SourceInvalid
from builder.sources.adapters.places import check_fit, placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.spec.types import Adapter, Variant
from builder.weights.shards import RawTensor
from tests.architectures import COMMON, LFM, MAMBA, YARN, known
from tests.comparison import Tensors, stream

torch: Any = pytest.importorskip("torch", reason="the dependency group `peft` is not installed")
peft: Any = pytest.importorskip("peft", reason="the dependency group `peft` is not installed")

pytestmark = pytest.mark.slow

RANK, ALPHA = 3, 7
F32 = Variant("f32", dtype="float32")
SIZES: Mapping[str, Any] = {
    # transformers would write partial_rotary_factor into rope_parameters of families that have no such thing.
    **{k: v for k, v in COMMON.items()
       if k not in ("time_step_limit", "rope_theta", "partial_rotary_factor")},
    "intermediate_size": 96, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "kv_lora_rank": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FULL, SLIDING = ["full_attention"] * 2, ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]
YARN_1 = {**YARN, "factor": 1.0}  # mlx-lm reads no DeepSeek V2 without YaRN, and this is none
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# Model type of transformers -> what its config says, and what mlx-lm's config says beyond that.
FAMILIES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixtral": ({}, {}),
    "olmoe": ({}, {}),
    "qwen2_moe": ({"norm_topk_prob": False}, {}),
    "qwen3_moe": ({}, {}),
    "qwen3_next": ({"layer_types": LINEAR}, {"partial_rotary_factor": 0.25, "full_attention_interval": 2}),
    "qwen3_5_moe_text": ({"layer_types": LINEAR}, {"full_attention_interval": 2}),
    "deepseek_v2": ({"topk_method": "greedy", "num_key_value_heads": 4}, {"rope_scaling": YARN_1}),
    "deepseek_v3": ({"num_key_value_heads": 4}, {}),
    "glm4_moe": ({}, {"partial_rotary_factor": 1.0}),
    "glm4_moe_lite": ({"num_key_value_heads": 4}, {}),
    "gpt_oss": ({"layer_types": SLIDING, "attention_bias": True, "rope_parameters": PLAIN}, {}),
    "granitemoe": ({}, {}),
    "granitemoehybrid": (
        {**MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 48,
         "position_embedding_type": "rope"},
        {"layer_types": ["mamba", "attention"]},
    ),
    "phimoe": ({"attention_bias": True, "lm_head_bias": True}, {}),
    "dots1": ({"layer_types": FULL}, {}),
    "lfm2_moe": (
        {**LFM, "tie_word_embeddings": True, "num_dense_layers": 1,
         "layer_types": ["conv", "full_attention"]},
        {},
    ),
    "jamba": (
        {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
         "use_mamba_kernels": False},
        {},
    ),
    "nemotron_h": (
        {"hybrid_override_pattern": "M*-E", "num_hidden_layers": 4, "mamba_num_heads": 4,
         "mamba_head_dim": 32},
        {},
    ),
    "ernie4_5_moe": (
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
        {},
    ),
    "exaone_moe": ({"layer_types": SLIDING}, {"is_moe_layer": [False, True]}),
    "mellum": ({"layer_types": FULL}, {"num_experts": 4}),
    "afmoe": ({"num_dense_layers": 1, "layer_types": SLIDING}, {}),
    "laguna": ({}, {}),
    "solar_open": ({}, {"partial_rotary_factor": 1.0, "first_k_dense_replace": 0}),
    "llama4_text": (
        {"num_experts_per_tok": 1, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1,
         "layer_types": ["chunked_attention"] * 3 + ["full_attention"], "attention_chunk_size": 32,
         "num_hidden_layers": 4},
        {"no_rope_layers": [1, 1, 1, 0], "use_qk_norm": True},
    ),
}  # fmt: skip
# The text models of larger ones, which mlx-lm knows as a whole only.
WHOLE = {"qwen3_5_moe_text": "qwen3_5_moe", "llama4_text": "llama4"}
TOKENS = [3, 17, 5, 60, 41, 8, 8, 29, 11, 2, 50, 33]
# Where transformers and mlx-lm do not compute the same of one base: their logits are not compared.
APART = {
    "jamba": "mlx-lm applies the router's softmax to the chosen experts, transformers to all experts",
}
CLOSE = 5e-4  # of the logits' standard deviation. The adapters move logits by 1 to 5
# all-linear would include what PEFT refuses to adapt.
MODULES = {"nemotron_h": ["q_proj", "o_proj"]}


def model_of(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family][0], **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * 0.05 if parameter.ndim > 1 else parameter.data + 0.1 * noise
        if "moe_statics" in name:  # mlx-lm drops this bias of the routing
            parameter.data.zero_()
    return model


def saved(model: Any, folder: Path, family: str) -> Path:
    """The model as on the hub, with a config that mlx-lm reads."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = {**COMMON, "rope_scaling": None, **config, **FAMILIES[family][1]}
    file = folder / "model.safetensors"
    tensors = dict(mx.load(str(file)))
    if family in WHOLE:
        text = {**config, "model_type": family}
        config = {"model_type": WHOLE[family], "vocab_size": config["vocab_size"], "text_config": text}
        tensors = {f"language_model.{name}": array for name, array in tensors.items()}
    else:
        config = known(config)
    if family == "gpt_oss":
        tensors = dequantized(tensors)
    if family == "qwen3_5_moe_text":
        tensors = fused(tensors)
    mx.save_safetensors(str(folder / "new.safetensors"), {n: mx.contiguous(a) for n, a in tensors.items()})
    (folder / "new.safetensors").replace(file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dequantized(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """mlx-lm reads gpt-oss packed, or under its own names: gate and up apart, (experts, out, in)."""
    out = {}
    for name, array in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            gate_up = array.swapaxes(1, 2)
            out |= {f"{path}.gate_proj.weight": gate_up[:, ::2], f"{path}.up_proj.weight": gate_up[:, 1::2]}
        elif leaf == "gate_up_proj_bias":
            out |= {f"{path}.gate_proj.bias": array[:, ::2], f"{path}.up_proj.bias": array[:, 1::2]}
        elif leaf == "down_proj":
            out[f"{path}.down_proj.weight"] = array.swapaxes(1, 2)
        elif leaf == "down_proj_bias":
            out[f"{path}.down_proj.bias"] = array
        else:
            out[name] = array
    return out


def fused(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The experts of a layer in two tensors, as the checkpoints of Qwen 3.5 have them."""
    out, experts = {}, {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match is None:
            out[name] = array
        else:
            experts[match[1], match[3], int(match[2])] = array
    for path in {key[0] for key in experts}:
        gate, up, down = (
            mx.stack([experts[path, f"{name}_proj", number] for number in range(4)])
            for name in ("gate", "up", "down")
        )
        out[f"{path}.gate_up_proj"], out[f"{path}.down_proj"] = mx.concatenate([gate, up], axis=1), down
    return out


def expert_parameters(model: Any) -> list[str]:
    """What target_parameters says of the experts: the last three names of each 3-D weight."""
    found = (n for n, p in model.named_parameters() if p.ndim == 3 and "conv" not in n and "bias" not in n)
    return sorted({".".join(name.split(".")[-3:]) for name in found})


def wrapped(model: Any, **settings: Any) -> Any:
    """The model in PEFT, with random pairs."""
    config = peft.LoraConfig(
        **{"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", "init_lora_weights": False, **settings}
    )
    inside = peft.get_peft_model(model, config)
    for name, parameter in inside.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    return inside


def built(base: Path, adapter: Path) -> Tensors:
    """The base with the adapter, unquantized, as a pass makes it."""
    structure = inspect(base)
    declared, places = Adapter("a", "b", adapter), places_of(structure)
    check_fit(declared, placed(read_adapter(declared), declared, places), places)
    return stream(base, adapter, [F32], structure=structure)["f32"].tensors


def assert_as_peft(base: Path, adapter: Path, merged: Path, *, tolerance: float = 1e-5) -> int:
    """Every weight as in PEFT's merged model. Returns how many of them the adapter changed."""
    return assert_weights(base, built(base, adapter), merged, tolerance=tolerance)


def assert_weights(base: Path, ours: Tensors, merged: Path, *, tolerance: float = 1e-5) -> int:
    """Every weight as in the merged model. Returns how many of them differ from the base."""
    expected, before = (dict(tree_flatten(load_base(f)[0].parameters())) for f in (merged, base))
    assert ours.keys() == expected.keys()
    changed = 0
    for name, tensor in ours.items():
        if tensor.dtype == "F32":
            array = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
            wanted = np.array(expected[name].astype(mx.float32))
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=tolerance, err_msg=name)
            changed += not np.array_equal(array, np.array(before[name].astype(mx.float32)))
    return changed


def logits_of_transformers(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([TOKENS]), use_cache=False).logits[0], np.float32)


def logits_of_mlx(folder: Path, tensors: Tensors | None = None) -> np.ndarray[Any, Any]:
    """Of the base in `folder`, or of the model with the same config and these tensors."""
    model = load_base(folder)[0]
    if tensors is not None:
        model.load_weights([(name, array_of(tensor)) for name, tensor in tensors.items()])
    model.eval()
    return np.array(model(mx.array([TOKENS]))[0].astype(mx.float32))


def array_of(tensor: RawTensor) -> mx.array:
    dtype = {"F32": np.float32, "I32": np.int32, "U32": np.uint32}[tensor.dtype]
    return mx.array(np.frombuffer(tensor.data, dtype).reshape(tensor.shape))


def distance(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference, as a part of the standard deviation of the logits."""
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_and_all_experts(family: str, tmp_path: Path) -> None:
    """The weights are PEFT's, and so are the logits where transformers and mlx-lm compute the same base."""
    model = model_of(family)
    base = saved(model, tmp_path / "base", family)
    plain = logits_of_transformers(model)
    parameters = expert_parameters(model)
    assert parameters
    inside = wrapped(model, target_modules=MODULES.get(family, "all-linear"), target_parameters=parameters)
    inside.save_pretrained(tmp_path / "adapter")
    whole = inside.merge_and_unload()
    merged = saved(whole, tmp_path / "merged", family)
    ours = built(base, tmp_path / "adapter")
    assert assert_weights(base, ours, merged) >= 4

    tuned = logits_of_transformers(whole)
    of_base, of_built = distance(logits_of_mlx(base), plain), distance(logits_of_mlx(base, ours), tuned)
    moved = distance(tuned, plain)
    print(
        f"{family}: the base differs by {of_base:.2g}, the built model by {of_built:.2g}, moved {moved:.2g}"
    )
    assert moved > 0.5
    assert (of_base > 0.01) == (family in APART)
    if family not in APART:
        assert of_base < CLOSE
        assert of_built < CLOSE


@pytest.mark.parametrize("parameter", ["gate_up_proj", "down_proj"])
def test_one_parameter_of_the_experts_and_the_router(parameter: str, tmp_path: Path) -> None:
    model = model_of("qwen3_moe")
    base = saved(model, tmp_path / "base", "qwen3_moe")
    targets = [f"mlp.experts.{parameter}", "mlp.gate.weight"]
    inside = wrapped(model, target_modules=["q_proj"], target_parameters=targets, use_rslora=True)
    inside.save_pretrained(tmp_path / "adapter")
    merged = saved(inside.merge_and_unload(), tmp_path / "merged", "qwen3_moe")
    stacks = 2 if parameter == "gate_up_proj" else 1
    assert assert_as_peft(base, tmp_path / "adapter", merged) == 2 * (stacks + 2)


def test_ranks_and_scales_of_single_parameters(tmp_path: Path) -> None:
    model = model_of("qwen3_moe")
    base = saved(model, tmp_path / "base", "qwen3_moe")
    inside = wrapped(
        model,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"experts.gate_up_proj": 2},
        alpha_pattern={"experts.down_proj": 11},
    )
    inside.save_pretrained(tmp_path / "adapter")
    merged = saved(inside.merge_and_unload(), tmp_path / "merged", "qwen3_moe")
    assert assert_as_peft(base, tmp_path / "adapter", merged) == 2 * 4


def test_square_experts(tmp_path: Path) -> None:
    """out is as large as in: the shapes do not say which is which, but the version of PEFT does."""
    model = model_of("qwen3_moe", moe_intermediate_size=64)
    base = saved(model, tmp_path / "base", "qwen3_moe")
    inside = wrapped(model, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    inside.save_pretrained(tmp_path / "adapter")
    merged = saved(inside.merge_and_unload(), tmp_path / "merged", "qwen3_moe")
    assert assert_as_peft(base, tmp_path / "adapter", merged) == 2 * 2
    file = tmp_path / "adapter/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "peft_version": "0.17.1"}))
    with pytest.raises(SourceInvalid, match="fits more than one place"):
        assert_as_peft(base, tmp_path / "adapter", merged)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_saved_beside_its_pair(tied: bool, tmp_path: Path) -> None:
    """PEFT saves embed_tokens.base_layer.weight beside the pair (save_embedding_layers)."""
    model = model_of("qwen3_moe", tie_word_embeddings=tied)
    base = saved(model, tmp_path / "base", "qwen3_moe")
    inside = wrapped(model, target_modules=["q_proj", "embed_tokens"])
    # as after a resize, or a training of the base
    inside.get_input_embeddings().weight.data += 0.5
    inside.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    names = mx.load(str(tmp_path / "adapter/adapter_model.safetensors"))
    assert any("base_layer.weight" in name for name in names)
    merged = saved(inside.merge_and_unload(), tmp_path / "merged", "qwen3_moe")
    if tied:
        with pytest.raises(SourceInvalid, match="tie_word_embeddings"):
            assert_as_peft(base, tmp_path / "adapter", merged)
    else:
        assert assert_as_peft(base, tmp_path / "adapter", merged) == 3


def test_a_tied_embedding_trained_as_one(tmp_path: Path) -> None:
    """ensure_weight_tying: PEFT trains the embedding and the head as one, and says so."""
    model = model_of("qwen3_moe", tie_word_embeddings=True)
    base = saved(model, tmp_path / "base", "qwen3_moe")
    inside = wrapped(
        model, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    for name, parameter in inside.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.5
    inside.save_pretrained(tmp_path / "adapter")
    merged = saved(inside.merge_and_unload(), tmp_path / "merged", "qwen3_moe")
    assert assert_as_peft(base, tmp_path / "adapter", merged) == 3
    shutil.rmtree(merged)
