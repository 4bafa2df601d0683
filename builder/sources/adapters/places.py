"""Finds where the tensors of a PEFT adapter belong in mlx-lm's model of the same checkpoint. Pure.

PEFT names modules as transformers does. mlx-lm differs in two ways. Models with a vision tower keep their
text model one level deeper or elsewhere. The experts of a layer are one stacked weight. A renaming is taken
only if every tensor has a place under it, and no other renaming gives every tensor a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace

from builder.errors import SourceInvalid
from builder.sources.adapters.types import AdapterInfo, AdapterTensor
from builder.spec.types import Adapter
from builder.weights import lora
from builder.weights.structure import Structure

_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,5})\.(\w+)")
# What mlx-lm calls the projections of an expert (the `sanitize` of mixtral, lfm2_moe, nemotron_h ...).
_PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "up_proj": ("fc1",),
    "down_proj": ("fc2",),
}


@dataclass(frozen=True)
class Places:
    """What a model has: the paths that can carry an adapter, and the shapes of its parameters by name."""

    adaptable: Container[str]
    shapes: Mapping[str, tuple[int, ...]]

    def fits(self, name: str) -> bool:
        """Whether a tensor of an adapter has a place here."""
        path, _, part = name.rpartition(".")
        return path in self.adaptable if part in lora.PARTS else name in self.shapes

    def experts(self, path: str) -> int:
        """How many experts the weight of a path stacks. 0 if the weight is not a stack."""
        shape = self.shapes.get(f"{path}.weight", ())
        return shape[0] if len(shape) == 3 else 0


def places_of(structure: Structure) -> Places:
    """The places of a base, from its structure."""
    return Places(structure.adaptable, {p.tensor.name: p.tensor.shape for p in structure.parameters})


def placed(info: AdapterInfo, adapter: Adapter, places: Places) -> AdapterInfo:
    """The adapter under the names of this model, if exactly one renaming places all of its tensors.

    Otherwise the adapter as it is. Raises SourceInvalid for experts that cannot be stacked.
    """
    if info.layout != "peft" or all(places.fits(tensor.name) for tensor in info.tensors):
        return info
    found = []
    for rename in _RENAMINGS:
        one = _stacked(_renamed(info, rename), adapter, places)
        if all(places.fits(tensor.name) for tensor in one.tensors):
            found.append(one)
    unique = {frozenset(tensor.name for tensor in one.tensors): one for one in found}
    return next(iter(unique.values())) if len(unique) == 1 else info


# -- the text model of a larger one ------------------------------------------------------------------------


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


_RENAMINGS: tuple[Callable[[str], str], ...] = (
    _as_is,
    _into_the_text_model,
    _text_model_first,
    _out_of_the_whole,
    _out_of_the_former_whole,
)


def _renamed(info: AdapterInfo, rename: Callable[[str], str]) -> AdapterInfo:
    tensors = tuple(_at(tensor, rename(tensor.path)) for tensor in info.tensors)
    return replace(info, tensors=tensors, scales={rename(path): s for path, s in info.scales.items()})


def _at(tensor: AdapterTensor, path: str) -> AdapterTensor:
    return replace(tensor, path=path, name=f"{path}.{tensor.part}")


# -- experts ----------------------------------------------------------------------------------------------


def _stacked(info: AdapterInfo, adapter: Adapter, places: Places) -> AdapterInfo:
    """The adapter with the low-rank pairs of single experts stacked into one pair for all experts.

    That pair has the shapes (experts, r, in) and (experts, out, r). Raises SourceInvalid.
    """
    tensors: list[AdapterTensor] = []
    scales = dict(info.scales)
    sets: dict[str, dict[str, dict[int, AdapterTensor]]] = {}  # stack -> part -> expert -> tensor
    for tensor in info.tensors:
        match = _EXPERT.fullmatch(tensor.path)
        stack = _stack(match[1], match[3], places) if match and not places.fits(tensor.name) else None
        if match is None or stack is None or tensor.part == "m":
            tensors.append(tensor)
        else:
            sets.setdefault(stack, {}).setdefault(tensor.part, {})[int(match[2])] = tensor
    for stack, parts in sets.items():
        for part, by_expert in parts.items():
            _check_set(info, adapter, stack, by_expert, places.experts(stack))
            ordered = [by_expert[number] for number in sorted(by_expert)]
            names = tuple(name for tensor in ordered for name in tensor.source_names)
            first = ordered[0]
            shape = (len(ordered), *(first.shape[::-1] if first.transpose else first.shape))
            tensors.append(AdapterTensor(f"{stack}.{part}", stack, part, names, False, first.dtype, shape))
            scales[stack] = scales[first.path]
    kept = {tensor.path for tensor in tensors}
    return replace(info, tensors=tuple(tensors), scales={p: s for p, s in scales.items() if p in kept})


def _stack(module: str, projection: str, places: Places) -> str | None:
    """The stacked module of one projection of the experts of `module`, if this model has it."""
    for name in (projection, *_PROJECTIONS.get(projection, ())):
        path = f"{module}.switch_mlp.{name}"
        if path in places.adaptable and places.experts(path):
            return path
    return None


def _check_set(
    info: AdapterInfo, adapter: Adapter, stack: str, found: Mapping[int, AdapterTensor], count: int
) -> None:
    """Raises SourceInvalid unless every expert has a tensor, with equal shapes, dtypes and scales."""
    if what := next(_problems(info, found, count), None):
        raise SourceInvalid(
            table=f"adapter.{adapter.name}",
            path=adapter.path,
            what=f'the experts of "{stack}" are one weight in mlx-lm, and {what}',
            hint="Train the same low-rank pair on every expert of a layer, or on none.",
        )


def _problems(info: AdapterInfo, found: Mapping[int, AdapterTensor], count: int) -> Iterator[str]:
    if missing := sorted(set(range(count)) - set(found)):
        yield f"the adapter holds {len(found)} of {count} (number {missing[0]} is missing)"
    if stray := sorted(set(found) - set(range(count))):
        yield f"the adapter holds number {stray[0]}, but there are only {count}"
    if len({(tensor.shape, tensor.dtype) for tensor in found.values()}) > 1:
        yield "the adapter's pairs have different shapes or types"
    if len({info.scales[tensor.path] for tensor in found.values()}) > 1:
        yield "the adapter's pairs have different scales"
