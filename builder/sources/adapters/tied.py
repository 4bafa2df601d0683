"""Adapters on an embedding that is also the output head. Reads bytes only to compare two tensors.

mlx-lm keeps one weight for both. PEFT wraps them as two modules. What PEFT trained as one weight, or saved
twice and equal, is one change. What it trained on one of the two alone has no place in a model with one
weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from builder.sources.adapters.types import AdapterInfo, AdapterTensor, refuse
from builder.spec.types import Adapter
from builder.weights.structure import Origin

HEADS = frozenset({"lm_head", "embed_out"})
_HINT = (
    "Train both as one (PEFT: ensure_weight_tying = true), or merge in transformers with"
    " tie_word_embeddings = false and use the result as the base."
)


def without_twins(
    info: AdapterInfo, adapter: Adapter, embedding: str, origins: Mapping[str, Origin]
) -> AdapterInfo:
    """The adapter without the tensors of a head that is the embedding of the base, where both are equal.

    embedding: the path in mlx-lm of the embedding that is also the head. Empty: the model has a head of its
    own. Raises SourceInvalid where only one of the two was trained, or both apart.
    """
    if not embedding:
        return info
    source = origins.get(f"{embedding}.weight", Origin((f"{embedding}.weight",))).sources[0]
    names = {source.split(".")[-2], embedding.rpartition(".")[2]}
    ours = [t for t in info.tensors if t.path.rpartition(".")[2] in names]
    heads = [t for t in info.tensors if t.path.rpartition(".")[2] in HEADS]
    if not ours and not heads:
        return info
    if ours and heads:
        if not _equal(info, ours, heads):
            what = f'trains "{ours[0].path}" and "{heads[0].path}" apart'
            refuse(adapter, info.file.path, f"{what}, but {_one(adapter)}", _HINT)
    elif heads or not info.config.get("ensure_weight_tying"):
        what = f'trains "{(ours or heads)[0].path}" alone'
        refuse(adapter, info.file.path, f"{what}, but {_one(adapter)}", _HINT)
    kept = tuple(t for t in info.tensors if t not in heads) if ours else info.tensors
    paths = {tensor.path for tensor in kept}
    return replace(info, tensors=kept, scales={p: s for p, s in info.scales.items() if p in paths})


def _one(adapter: Adapter) -> str:
    return f'in base "{adapter.base}" the embedding and the output head are one weight (tie_word_embeddings)'


def _equal(info: AdapterInfo, ours: list[AdapterTensor], heads: list[AdapterTensor]) -> bool:
    """Whether the tensors of the embedding and of the head are the same change.

    A pair of an embedding is (tokens, r) and (r, dims) in mlx-lm's orientation. The pair of the head is
    (dims, r) and (r, tokens): the same two matrices, transposed and exchanged.
    """
    one, other = {t.part: t for t in ours}, {t.part: t for t in heads}
    if one.keys() != other.keys() or "m" in one:
        return False
    if info.scales.get(ours[0].path) != info.scales.get(heads[0].path):
        return False
    if "lora_a" in one and not (
        _same_bits(info, one["lora_a"], other["lora_b"], flip=True)
        and _same_bits(info, one["lora_b"], other["lora_a"], flip=True)
    ):
        return False
    return "weight" not in one or _same_bits(info, one["weight"], other["weight"], flip=False)


def _same_bits(info: AdapterInfo, one: AdapterTensor, other: AdapterTensor, *, flip: bool) -> bool:
    import numpy as np

    where = {tensor.name: tensor for tensor in info.file.tensors}
    arrays = []
    with info.file.path.open("rb") as handle:
        for tensor in (one, other):
            stored = where[tensor.source_name]
            handle.seek(stored.start)
            kind = "<u4" if stored.dtype == "F32" else "<u2"
            array = np.frombuffer(handle.read(stored.end - stored.start), kind).reshape(stored.shape)
            arrays.append(array.T if tensor.transpose else array)
    return one.dtype == other.dtype and np.array_equal(arrays[0], arrays[1].T if flip else arrays[1])
