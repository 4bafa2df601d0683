"""How transformers may spell a module that a checkpoint, or mlx-lm, spells differently. Pure.

transformers renames tensors while it loads a checkpoint (transformers.conversion_mapping), and PEFT names
modules by the result. `ROOTS` move a whole model. One of them holds for a whole adapter. `SPELLINGS` are of
single modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


def _as_is(path: str) -> str:
    return path


def _into_the_text_model(path: str) -> str:
    """model.layers.0 -> language_model.model.layers.0: it was trained on the text model alone."""
    return f"language_model.{path}"


def _text_model_first(path: str) -> str:
    """model.language_model.layers.0 -> language_model.model.layers.0: transformers 4.52 and later."""
    inner = path.removeprefix("model.language_model.")
    return f"language_model.{path}" if inner == path else f"language_model.model.{inner}"


def _out_of_the_whole(path: str) -> str:
    """model.language_model.layers.0 -> model.layers.0: trained on the whole model, used on its text model."""
    inner = path.removeprefix("model.language_model.")
    return path if inner == path else f"model.{inner}"


def _out_of_the_former_whole(path: str) -> str:
    """language_model.model.layers.0 -> model.layers.0: as _out_of_the_whole, for transformers before 4.52."""
    return path.removeprefix("language_model.")


def _into_the_whole(path: str) -> str:
    """model.layers.0 -> model.language_model.layers.0: trained on the text model, used on the whole model."""
    inner = path.removeprefix("model.")
    return path if inner == path else f"model.language_model.{inner}"


def _backbone(path: str) -> str:
    """model.layers.0 -> backbone.layers.0: Nemotron-H."""
    return f"backbone.{path.removeprefix('model.')}" if path.startswith("model.") else path


def _without_transformer(path: str) -> str:
    """transformer.h.0 -> h.0: checkpoints of GPT-2 without a head."""
    return path.removeprefix("transformer.")


def _within_model(path: str) -> str:
    """layers.0 -> model.layers.0: it was trained on the model without a head."""
    return f"model.{path}"


ROOTS: tuple[Callable[[str], str], ...] = (
    _as_is,
    _into_the_text_model,
    _text_model_first,
    _out_of_the_whole,
    _out_of_the_former_whole,
    _into_the_whole,
    _backbone,
    _without_transformer,
    _within_model,
)

# What a module is called in transformers, and what a checkpoint may call it.
SPELLINGS: tuple[tuple[str, str], ...] = (
    (".mlp.", ".block_sparse_moe."),
    (".mlp.router.", ".block_sparse_moe.gate."),
    (".block_sparse_moe.router.", ".block_sparse_moe.router.layer."),
    (".self_attn.o_proj.", ".attention.dense."),
    (".self_attn.", ".attention."),
    (".self_attn.forget_gate.", ".self_attn.", ),
    (".self_attn.indexer.q_proj.", ".self_attn.index_q_proj."),
    (".self_attn.indexer.k_proj.", ".self_attn.index_k_proj."),
    (".shared_experts.", ".shared_expert."),
    (".embed_tokens.", ".word_embeddings."),
    (".input_layernorm.", ".attention_layer_norm."),
    (".post_attention_layernorm.", ".feedforward_layer_norm."),
)  # fmt: skip


def spellings(path: str) -> Iterator[str]:
    """A path as it is, and each other way in which a checkpoint may spell it."""
    yield path
    dotted = f".{path}."
    for ours, theirs in SPELLINGS:
        if ours in dotted:
            yield dotted.replace(ours, theirs)[1:-1]
