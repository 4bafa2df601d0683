"""What the tensors of a model become in a GGUF: names, types and sizes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from builder.gguf.architecture import Tensor, tensors_of
from builder.gguf.formats import type_of
from builder.gguf.mixes import MIXES, mixed, model_of
from builder.gguf.weights import Weight, affine_weight
from builder.spec.types import Quantization
from builder.weights.structure import TensorSpec

Made = tuple[Tensor, Weight, str]  # a tensor of the GGUF, the weight that it is made of, its type


def made_of(
    model_type: str,
    wanted: str,
    blocks: Mapping[str, Sequence[TensorSpec]],
    quantization: Mapping[str, Quantization],
    *,
    weighed: bool = False,
) -> dict[str, tuple[Made, ...]]:
    """Block -> the tensors of a GGUF that its tensors become. `weighed`: with an importance matrix.

    Raises Unwritable.
    """
    named: dict[str, list[tuple[Tensor, Weight]]] = {}
    architecture = ""
    for block, tensors in blocks.items():
        weights = _weights(tensors, quantization)
        architecture, made = tensors_of(model_type, [*weights])
        named[block] = [(each, weights[each.source]) for each in made]
    every = [pair for pairs in named.values() for pair in pairs]
    kinds = kinds_of(wanted, every, architecture, weighed=weighed)
    return {
        block: tuple((tensor, weight, kinds[tensor.name]) for tensor, weight in pairs)
        for block, pairs in named.items()
    }


def kinds_of(
    wanted: str, tensors: Sequence[tuple[Tensor, Weight]], architecture: str, *, weighed: bool
) -> dict[str, str]:
    """Tensor -> its type in a GGUF of the type that is wanted, of all tensors of a model. Raises Unwritable.

    `weighed`: with an importance matrix.
    """
    if wanted not in MIXES:
        return {tensor.name: type_of(wanted, tensor, weight) for tensor, weight in tensors}
    plain = {tensor.name: type_of("F16", tensor, weight) for tensor, weight in tensors}
    free = [(tensor.name, weight.columns) for tensor, weight in tensors if plain[tensor.name] == "F16"]
    model = model_of(architecture, {tensor.name: weight.shape for tensor, weight in tensors})
    return plain | mixed(wanted, free, model, weighed=weighed)


def specs(made: Iterable[Made]) -> tuple[TensorSpec, ...]:
    """Names, types and shapes of the tensors, sorted by name as a file holds them."""
    found = (TensorSpec(tensor.name, kind, weight.shape) for tensor, weight, kind in made)
    return tuple(sorted(found, key=lambda spec: spec.name))


def mix(tensors: Iterable[TensorSpec]) -> dict[str, float]:
    """Type -> its share of all elements, largest first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.elements
    total = sum(counts.values())
    return {kind: counts[kind] / total for kind in sorted(counts, key=lambda kind: -counts[kind])}


def shares(found: Mapping[str, float]) -> str:
    """A mix as text: "Q4_1 79 %, Q8_0 21 %"."""
    return ", ".join(f"{kind} {100 * share:.3g} %" for kind, share in found.items() if share >= 5e-4)


def _weights(tensors: Sequence[TensorSpec], quantization: Mapping[str, Quantization]) -> dict[str, Weight]:
    by_name = {tensor.name: tensor for tensor in tensors}
    found = {}
    for name, tensor in by_name.items():
        path, _, leaf = name.rpartition(".")
        how = quantization.get(path)
        if how is None:
            found[name] = Weight(name, tensor.shape, tensor.dtype, None)
        elif leaf == "weight":
            found[name] = affine_weight(name, tensor.shape, by_name[f"{path}.scales"].dtype, how)
        elif leaf not in ("scales", "biases"):
            found[name] = Weight(name, tensor.shape, tensor.dtype, None)
    return found
