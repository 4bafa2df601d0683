"""Every kind of adapter, fused as mlx_lm fuses it, bit for bit; what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.engine.finite import NotFinite
from builder.engine.inspect import inspect
from builder.engine.loading import AdapterMismatch, LoadedAdapter, NotDequantizable, load_base
from builder.spec.quantizers import MODES
from builder.spec.types import Quantization, Variant
from tests.architectures import Architecture, checkpoint, dense, moe
from tests.comparison import (
    arguments,
    converted,
    differences,
    fused,
    lora,
    lora_shapes,
    quiet,
    stream,
)
from tests.reference import reference

VARIANTS = [
    Variant("4bit", quantization=Quantization(4, 64)),
    Variant("mxfp4", quantization=Quantization(4, 32, "mxfp4")),
    Variant("f16", dtype="float16"),
    Variant("own"),
]
DENSE, MOE = dense("qwen3"), moe("qwen3_moe")
HALF = dense("llama", dtype="float16", attention_bias=True, mlp_bias=True)
SINGLE = dense("llama", dtype="float32")
TIED = dense("qwen3", tie_word_embeddings=True)

Tensors = dict[str, mx.array]


def random(seed: int, shape: tuple[int, ...], scale: float = 0.05) -> mx.array:
    return mx.random.normal(shape, scale=scale, key=mx.random.key(seed))


def save(folder: Path, tensors: Mapping[str, mx.array], kind: str, **parameters: Any) -> Path:
    """An adapter in mlx-lm's layout."""
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tensors))
    parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0, **parameters}
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def low_rank(
    base: Path, wanted: Callable[[str], bool], *, rank: int = 4, dora: bool = False, dtype: Any = mx.float32
) -> Tensors:
    """lora_a and lora_b (and m) for the paths of a model that are wanted."""
    model, _ = load_base(base)
    tensors: Tensors = {}
    for path, module in model.named_modules():
        if not wanted(path) or not hasattr(module, "to_quantized"):
            continue
        for part, shape in lora_shapes(module, rank).items():
            tensors[f"{path}.{part}"] = random(len(tensors), shape).astype(dtype)
        if dora:
            tensors[f"{path}.m"] = mx.abs(random(len(tensors), (module.weight.shape[0],), 1.0)) + 0.5
    return tensors


def relative(tensors: Mapping[str, mx.array]) -> list[str]:
    """The `keys` of an mlx-lm adapter over blocks: paths inside a block."""
    return sorted({name.rpartition(".")[0].split(".", 3)[3] for name in tensors})


def attention(path: str) -> bool:
    return "self_attn" in path and path.endswith(("q_proj", "v_proj", "o_proj"))


CASES: dict[str, tuple[Architecture, Callable[[Path], tuple[Tensors, str, dict[str, Any]]]]] = {}


def case(
    name: str, architecture: Architecture
) -> Callable[[Callable[[Path], tuple[Tensors, str, dict[str, Any]]]], None]:
    def note(make: Callable[[Path], tuple[Tensors, str, dict[str, Any]]]) -> None:
        CASES[name] = (architecture, make)

    return note


def over(wanted: Callable[[str], bool], kind: str = "lora", **how: Any) -> Any:
    """An adapter over the wanted paths, with the keys in the form that mlx_lm.lora writes them."""

    def make(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
        tensors = low_rank(base, wanted, dora=kind == "dora", **how)
        inside = all(".layers." in name for name in tensors)
        keys = relative(tensors) if inside else sorted({n.rpartition(".")[0] for n in tensors})
        return tensors, kind, {"keys": keys, "rank": how.get("rank", 4)}

    return make


def everything(_: str) -> bool:
    return True


case("LoRA", DENSE)(over(attention))
case("LoRA on everything", DENSE)(over(everything))
case("LoRA, rank 1", DENSE)(over(attention, rank=1))
case("LoRA, rank above the width", DENSE)(over(attention, rank=80))
case("LoRA in bfloat16", DENSE)(over(attention, dtype=mx.bfloat16))
case("LoRA in float16", DENSE)(over(attention, dtype=mx.float16))
case("LoRA beside biases, float16", HALF)(over(everything))
case("LoRA in float32 on float32", SINGLE)(over(everything))
case("LoRA on experts", MOE)(over(lambda path: "switch_mlp" in path))
case("LoRA on experts, bfloat16", MOE)(over(lambda path: "switch_mlp" in path, dtype=mx.bfloat16))
case("LoRA on routers", MOE)(over(lambda path: path.endswith("mlp.gate")))
case("LoRA on a tied embedding", TIED)(over(lambda path: path == "model.embed_tokens"))
case("LoRA on embedding and head", DENSE)(over(lambda path: path in ("model.embed_tokens", "lm_head")))
case("DoRA", DENSE)(over(attention, "dora"))
case("DoRA beside biases, float16", HALF)(over(attention, "dora"))
case("DoRA on an embedding", TIED)(over(lambda path: path == "model.embed_tokens", "dora"))


@case("full, one block", DENSE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda name: ".layers.1." in name), "full", {}


@case("full, everything, float32", DENSE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda _: True, mx.float32), "full", {}


@case("full, experts", MOE)
def _(base: Path) -> tuple[Tensors, str, dict[str, Any]]:
    return full(base, lambda name: "switch_mlp" in name), "full", {}


def full(base: Path, wanted: Callable[[str], bool], dtype: Any = mx.bfloat16) -> Tensors:
    model, _ = load_base(base)
    from mlx.utils import tree_flatten

    arrays = dict(tree_flatten(model.parameters()))
    chosen = [name for name in sorted(arrays) if wanted(name)]
    return {name: random(n, arrays[name].shape).astype(dtype) for n, name in enumerate(chosen)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "mlx"])
def test_equal_to_fuse_and_convert(name: str, compiled: bool, tmp_path: Path) -> None:
    architecture, make = CASES[name]
    base = checkpoint(tmp_path / "base", architecture)
    tensors, kind, parameters = make(base)
    assert tensors
    adapter = save(tmp_path / "adapter", tensors, kind, **parameters)
    source = fused(base, adapter, tmp_path / "fused")
    ours = stream(base, adapter, VARIANTS, compiled=compiled)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []
    plain = stream(base, None, VARIANTS[:1])["4bit"]
    assert differences(ours["4bit"], plain) != []  # it changes something


# -- PEFT -------------------------------------------------------------------------------------------------


def save_peft(folder: Path, tensors: Mapping[str, mx.array], **config: Any) -> Path:
    """The same low-rank tensors in PEFT's layout: transposed, under its names."""
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
    renamed = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        stored = mx.contiguous(tensor.T) if tensor.ndim == 2 else tensor
        renamed[f"base_model.model.{path}.{names.get(part, part)}"] = stored
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), renamed)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "config", "scale"),
    [
        ("lora", {}, 3.0),
        ("lora", {"use_rslora": True}, 6.0),
        ("lora", {"lora_alpha": 5}, 1.25),
        ("dora", {"use_dora": True}, 3.0),
    ],
)
def test_peft(kind: str, config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    """A PEFT adapter gives what the same adapter in mlx-lm's layout gives in mlx-lm."""
    base = checkpoint(tmp_path / "base", DENSE)
    tensors = low_rank(base, attention, dora=kind == "dora")
    theirs = save(tmp_path / "mlx", tensors, kind, keys=relative(tensors), scale=scale)
    source = fused(base, theirs, tmp_path / "fused")
    ours = stream(base, save_peft(tmp_path / "peft", tensors, **config), VARIANTS)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []


def test_peft_ranks_and_scales_of_their_own(tmp_path: Path) -> None:
    """rank_pattern and alpha_pattern: mlx-lm has one rank and scale for all, so each path is fused alone."""
    base = checkpoint(tmp_path / "base", DENSE)
    queries = low_rank(base, lambda path: path.endswith("q_proj"), rank=8)
    values = low_rank(base, lambda path: path.endswith("v_proj"), rank=4)
    ours = stream(
        base,
        save_peft(
            tmp_path / "peft",
            queries | values,
            rank_pattern={"q_proj": 8},
            alpha_pattern={"layers.1.self_attn.q_proj": 32},
        ),
        VARIANTS,
    )
    first = {name: tensor for name, tensor in queries.items() if ".layers.0." in name}
    second = {name: tensor for name, tensor in queries.items() if ".layers.1." in name}
    source = base
    for number, (tensors, rank, scale) in enumerate(((first, 8, 1.5), (second, 8, 4.0), (values, 4, 3.0))):
        paths = sorted({name.rpartition(".")[0] for name in tensors})
        adapter = save(tmp_path / f"a{number}", tensors, "lora", keys=paths, scale=scale, rank=rank)
        source = fused(source, adapter, tmp_path / f"fused{number}")
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []


def test_peft_modules_to_save(tmp_path: Path) -> None:
    """Whole modules beside low-rank ones."""
    base = checkpoint(tmp_path / "base", DENSE)
    tensors = low_rank(base, attention)
    head = random(99, (128, 64)).astype(mx.bfloat16)
    adapter = save_peft(tmp_path / "peft", tensors)
    file = adapter / "adapter_model.safetensors"
    stored = mx.load(str(file))
    stored["base_model.model.lm_head.modules_to_save.weight"] = head
    mx.eval(stored)
    mx.save_safetensors(str(file), stored)
    theirs = save(tmp_path / "mlx", tensors, "lora", keys=relative(tensors))
    source = fused(base, theirs, tmp_path / "fused")
    source = fused(source, save(tmp_path / "head", {"lm_head.weight": head}, "full"), tmp_path / "both")
    ours = stream(base, adapter, VARIANTS)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []


# -- a base that is quantized already ---------------------------------------------------------------------

STORED = [
    Quantization(4, 64),
    Quantization(8, 32),
    *(Quantization(bits, group, mode) for mode, (_, _, bits, group) in MODES.items() if mode != "affine"),
]


def packed(folder: Path, architecture: Architecture, how: Quantization) -> Path:
    """A checkpoint that mlx_lm.convert has quantized."""
    plain = checkpoint(folder / "plain", architecture)
    with quiet():
        reference(plain, None, folder / "packed", **arguments(Variant("v", quantization=how)))
    return folder / "packed"


def fused_dequantized(base: Path, adapter: Path | None, out: Path) -> Path:
    """What `mlx_lm.fuse --dequantize` does (fuse.main)."""
    from mlx.utils import tree_unflatten
    from mlx_lm import utils

    with quiet():
        model, tokenizer, config = utils.load(
            str(base), adapter_path=adapter and str(adapter), return_config=True
        )
        layers = [(n, m.fuse(dequantize=True)) for n, m in model.named_modules() if hasattr(m, "fuse")]
        model.update_modules(tree_unflatten(layers))
        model = utils.dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
        utils.save(out, str(base), model, tokenizer, config, donate_model=False)
    return out


@pytest.mark.parametrize("architecture", [DENSE, TIED, HALF, MOE], ids=lambda a: a.name)
@pytest.mark.parametrize("how", STORED, ids=lambda q: f"{q.mode}-{q.bits}-{q.group_size}")
@pytest.mark.parametrize("adapted", [True, False], ids=["LoRA", "plain"])
def test_dequantized_base(
    architecture: Architecture, how: Quantization, adapted: bool, tmp_path: Path
) -> None:
    base = packed(tmp_path, architecture, how)
    assert inspect(base).quantized
    structure = inspect(base, dequantize=True)
    assert not structure.quantized
    adapter = lora(tmp_path / "plain", structure, tmp_path / "adapter") if adapted else None
    source = fused_dequantized(base, adapter, tmp_path / "fused")
    ours = stream(base, adapter, VARIANTS, dequantize=True)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []


@pytest.mark.parametrize("dora", [True])
def test_dora_on_a_dequantized_base(dora: bool, tmp_path: Path) -> None:
    base = packed(tmp_path, DENSE, Quantization(4, 64))
    tensors = low_rank(tmp_path / "plain", attention, dora=dora)
    adapter = save(tmp_path / "adapter", tensors, "dora", keys=relative(tensors))
    source = fused_dequantized(base, adapter, tmp_path / "fused")
    ours = stream(base, adapter, VARIANTS, dequantize=True)
    for variant in VARIANTS:
        assert differences(ours[variant.name], converted(source, variant, tmp_path / variant.name)) == []


def test_what_mlx_lm_cannot_dequantize_is_refused(tmp_path: Path) -> None:
    """It passes by the quantized projections of latent attention, and the result does not load."""
    base = packed(tmp_path, moe("deepseek_v3", label="packed"), Quantization(4, 64))
    with pytest.raises(NotDequantizable, match=r'"model.layers.0.self_attn.unembed_out" \(a Quant'):
        load_base(base, dequantize=True)


def test_experts_with_a_scale_of_their_own_are_not_dequantized(tmp_path: Path) -> None:
    """mlx_lm.utils.dequantize_model forgets the tensor scale of nvfp4 experts."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    plain = checkpoint(tmp_path / "plain", MOE)
    model, config = load_model(plain)
    with quiet():
        model, config = quantize_model(model, config, 16, 4, mode="nvfp4", global_scale=True)
    save_model(tmp_path / "packed", model)
    save_config(config, tmp_path / "packed" / "config.json")
    with pytest.raises(NotDequantizable, match="switch_mlp"):
        load_base(tmp_path / "packed", dequantize=True)


# -- refused by name --------------------------------------------------------------------------------------


def refusal(base: Path, tensors: Mapping[str, mx.array], kind: str = "lora") -> str:
    """The message with which an adapter is refused, wherever that is noticed first."""
    scales = {name.rpartition(".")[0]: 1.0 for name in tensors}
    with pytest.raises((AdapterMismatch, NotFinite)) as caught:
        stream(base, LoadedAdapter("tuned", kind, dict(tensors), scales), VARIANTS[:1])
    return caught.value.message


A, B = "model.layers.1.self_attn.q_proj.lora_a", "model.layers.1.self_attn.q_proj.lora_b"
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str, str]] = {
    "no such block": (
        {A.replace("1", "7"): (64, 4), B.replace("1", "7"): (4, 64)},
        "lora",
        'tensor "model.layers.7.self_attn.q_proj.lora_a" matches nothing in the model',
    ),
    "no such module": (
        {A.replace("q_", "z_"): (64, 4), B.replace("q_", "z_"): (4, 64)},
        "lora",
        'tensor "model.layers.1.self_attn.z_proj.lora_a" matches nothing in the model',
    ),
    "too narrow": (
        {A: (32, 4), B: (4, 64)},
        "lora",
        f'tensor "{A}" has shape (32, 4), but the model needs (64, 4)',
    ),
    "too tall": (
        {A: (64, 4), B: (4, 65)},
        "lora",
        f'tensor "{B}" has shape (4, 65), but the model needs (4, 64)',
    ),
    "other ranks": (
        {A: (64, 3), B: (4, 64)},
        "lora",
        f'tensor "{A}" has shape (64, 3), but the model needs (64, 4)',
    ),
    "alone": ({A: (64, 4)}, "lora", f'tensor "{A}" has no lora_b beside it'),
    "on a norm": (
        {"model.norm.lora_a": (64, 4), "model.norm.lora_b": (4, 64)},
        "lora",
        'tensor "model.norm.lora_a" is for a RMSNorm, which mlx-lm cannot adapt',
    ),
    "full, no such tensor": (
        {"model.layers.1.nothing.weight": (4, 4)},
        "full",
        'tensor "model.layers.1.nothing.weight" matches nothing in the model',
    ),
    "full, another shape": (
        {"model.norm.weight": (32,)},
        "full",
        'tensor "model.norm.weight" has shape (32,), but the model needs (64,)',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_does_not_fit(name: str, tmp_path: Path) -> None:
    shapes, kind, message = REFUSED[name]
    base = checkpoint(tmp_path / "base", DENSE)
    tensors = {tensor: random(1, shape) for tensor, shape in shapes.items()}
    assert refusal(base, tensors, kind) == f"adapter tuned: {message}."


def test_experts_cannot_carry_dora(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", MOE)
    tensors = low_rank(base, lambda path: path.endswith("switch_mlp.up_proj"))
    path = "model.layers.0.mlp.switch_mlp.up_proj"
    assert "cannot adapt" in refusal(base, {**tensors, f"{path}.m": mx.ones((64,))}, "dora")


BAD = {"NaN": float("nan"), "infinity": float("inf"), "negative infinity": float("-inf")}
STORE = [
    *VARIANTS,
    Variant("nvfp4", quantization=Quantization(4, 16, "nvfp4")),
    Variant("f32", dtype="float32"),
]


@pytest.mark.parametrize("variant", STORE, ids=lambda v: v.name)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "mlx"])
@pytest.mark.parametrize("what", BAD)
def test_a_fused_weight_that_is_not_finite(
    what: str, compiled: bool, variant: Variant, tmp_path: Path
) -> None:
    base = checkpoint(tmp_path / "base", DENSE)
    tensors = low_rank(base, lambda path: path == "model.layers.1.mlp.up_proj")
    tensors["model.layers.1.mlp.up_proj.lora_b"][1, 2] = BAD[what]
    adapter = LoadedAdapter("tuned", "lora", tensors, {"model.layers.1.mlp.up_proj": 1.0})
    with pytest.raises(NotFinite, match=r'tensor "model.layers.1.mlp.up_proj.weight" holds NaN or infinity'):
        stream(base, adapter, [variant], compiled=compiled)


@pytest.mark.parametrize("variant", STORE, ids=lambda v: v.name)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "mlx"])
@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("model.embed_tokens.weight", DENSE),
        ("model.norm.weight", DENSE),
        ("model.layers.1.mlp.up_proj.bias", HALF),
    ],
    ids=["embedding", "norm", "bias"],
)
def test_a_base_that_is_not_finite(
    name: str, architecture: Architecture, compiled: bool, variant: Variant, tmp_path: Path
) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    file = base / "model.safetensors"
    tensors = mx.load(str(file))
    mx.eval(tensors)
    tensors[name][..., 3] = float("nan")
    mx.save_safetensors(str(file), tensors)
    with pytest.raises(NotFinite, match=f'tensor "{name}" holds NaN or infinity'):
        stream(base, None, [variant], compiled=compiled)


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    """bfloat16 reaches 3e38, float16 65504: a cast would make infinity of it."""
    base = checkpoint(tmp_path / "base", DENSE)
    file = base / "model.safetensors"
    tensors = mx.load(str(file))
    mx.eval(tensors)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    mx.save_safetensors(str(file), tensors)
    for variant in (Variant("f16", dtype="float16"), Variant("q", "float16", Quantization(4, 64))):
        with pytest.raises(NotFinite, match="up_proj.weight"):
            stream(base, None, [variant])
    stream(base, None, [Variant("bf16", dtype="bfloat16")])


# -- what differs from mlx-lm on purpose ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_without_a_dtype_weights_keep_the_type_of_the_base(kind: str, tmp_path: Path) -> None:
    """mlx_lm.fuse makes float32 of DoRA and of a float32 full fine-tune; convert casts back, if config.json
    has a torch_dtype. Where it says `dtype` instead, the weights keep the type of the base all the same.
    """
    base = checkpoint(tmp_path / "base", dense("qwen3", dtype_key="dtype"))
    if kind == "dora":
        tensors = low_rank(base, attention, dora=True)
    else:
        tensors = full(base, lambda name: ".layers.1." in name, mx.float32)
    adapter = save(tmp_path / "adapter", tensors, kind, keys=relative(tensors) if kind == "dora" else [])
    ours = stream(base, adapter, [Variant("own")])["own"]
    assert {tensor.dtype for tensor in ours.tensors.values()} == {"BF16"}
