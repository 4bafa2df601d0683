"""Undoes mlx_lm's `sanitize`: a model's parameters as Hugging Face names and shapes them.

So that a checkpoint gives what real ones give: experts in one tensor each, kv_b_proj in one piece, transposed
convolutions, a head that a tied model does not need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import mlx.core as mx

Tensors = dict[str, mx.array]

_EXPERTS = re.compile(
    r"^(.*)\.(?:switch_mlp|experts|switch_glu)\.(gate_proj|up_proj|down_proj|fc1|fc2)\.weight$"
)
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_NEMOTRON = {"fc1": "up_proj", "fc2": "down_proj"}


def original(model_type: str, tensors: Mapping[str, mx.array]) -> Tensors:
    """Tensors under their original names."""
    made = dict(tensors)
    for undo in UNDO[model_type]:
        made = undo(made)
    return made


def one_by_one(names: Mapping[str, str]) -> Callable[[Tensors], Tensors]:
    """Stacked experts to one tensor for each; projections renamed by `names`."""

    def undo(tensors: Tensors) -> Tensors:
        out: Tensors = {}
        for name, array in tensors.items():
            match = _EXPERTS.match(name)
            if match is None or array.ndim != 3:
                out[name] = array
                continue
            place, projection = match.groups()
            for number, expert in enumerate(array):
                out[f"{place}.experts.{number}.{names.get(projection, projection)}.weight"] = expert
        return out

    return undo


def paired(tensors: Tensors) -> Tensors:
    """gate_proj and up_proj of all experts in one input_linear (granitemoe)."""
    out = {name: array for name, array in tensors.items() if ".switch_mlp." not in name}
    for name in tensors:
        if name.endswith(".switch_mlp.gate_proj.weight"):
            place = name.removesuffix(".switch_mlp.gate_proj.weight")
            gate, up, down = (tensors[f"{place}.switch_mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
            out[f"{place}.input_linear.weight"] = mx.concatenate([gate, up], axis=1)
            out[f"{place}.output_linear.weight"] = down
    return out


def joined_latents(tensors: Tensors) -> Tensors:
    """embed_q and unembed_out to kv_b_proj (latent attention)."""
    out = dict(tensors)
    for name in tensors:
        if name.endswith(".embed_q.weight"):
            place = name.removesuffix(".embed_q.weight")
            key, value = out.pop(name).swapaxes(-1, -2), out.pop(f"{place}.unembed_out.weight")
            joined = mx.concatenate([key, value], axis=1)
            out[f"{place}.kv_b_proj.weight"] = joined.reshape(-1, joined.shape[-1])
    return out


def channels_first(tensors: Tensors) -> Tensors:
    """Depthwise convolutions as torch stores them."""
    convolution = re.compile(r"conv(1d)?\.weight$")
    return {
        name: array.moveaxis(2, 1) if convolution.search(name) else array for name, array in tensors.items()
    }


def with_leftovers(tensors: Tensors) -> Tensors:
    """What a checkpoint may hold and the model has no use for: a tied head, rotary tables."""
    extra = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": mx.ones((8,)),
    }
    return {**extra, **tensors}


def transposed(tensors: Tensors) -> Tensors:
    """GPT-2's Conv1D weights, and its names without `model.`."""
    return {
        name.removeprefix("model."): array.T
        if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name) else array
        for name, array in tensors.items()
    }  # fmt: skip


def nested(tensors: Tensors) -> Tensors:
    """A text model inside a vision model of newer transformers, with a piece of the vision tower."""
    moved = {f"model.{name.replace('.model.', '.')}": array for name, array in tensors.items()}
    moved = {n.replace("model.language_model.lm_head", "lm_head"): array for n, array in moved.items()}
    return {**moved, "model.visual.patch_embed.weight": mx.ones((4, 4))}


def beside_vision(tensors: Tensors) -> Tensors:
    return {**tensors, "vision_tower.patch.weight": mx.ones((4, 4))}


STACKED = (one_by_one({}),)
UNDO: Mapping[str, tuple[Callable[[Tensors], Tensors], ...]] = {
    "llama": (with_leftovers,),
    "mixtral": (one_by_one(_MIXTRAL),),
    "phimoe": (one_by_one(_MIXTRAL),),
    "minimax": (one_by_one(_MIXTRAL),),
    "qwen2_moe": STACKED,
    "qwen3_moe": STACKED,
    "olmoe": STACKED,
    "dots1": STACKED,
    "glm4_moe": STACKED,
    "deepseek_v2": STACKED,
    "deepseek_v3": (one_by_one({}), joined_latents),
    "glm4_moe_lite": (one_by_one({}), joined_latents),
    "qwen3_next": (one_by_one({}), channels_first),
    "granitemoe": (paired,),
    "jamba": (one_by_one({}), channels_first),
    "nemotron_h": (one_by_one(_NEMOTRON), channels_first),
    "mamba2": (channels_first,),
    "falcon_h1": (channels_first,),
    "lfm2": (channels_first,),
    "gpt2": (transposed,),
    "qwen3_vl": (nested,),
    "gemma3": (beside_vision,),
}
