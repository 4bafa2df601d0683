"""Finds where the tensors of a PEFT adapter belong in mlx-lm's model of the same checkpoint. Pure.

PEFT names modules as transformers does, and nearly as the checkpoint does. The structure of the base says
which parameters mlx-lm makes from each tensor of the checkpoint. Where a parameter is that tensor as it is,
the adapter's tensor gets the parameter's name. Where mlx-lm changes the tensor, the adapter's tensor goes
`through` the checkpoint (builder.engine.merging). The experts of a layer are one stacked weight
(builder.sources.adapters.experts).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from builder.sources.adapters import experts, tied
from builder.sources.adapters.mlx import check_covered
from builder.sources.adapters.model import Places, places_of
from builder.sources.adapters.names import ROOTS, spellings
from builder.sources.adapters.types import WHOLE, AdapterInfo, AdapterTensor, Cut, refuse
from builder.spec.types import Adapter
from builder.weights import lora

_TOWER = re.compile(r"(^|[._])(visual|vision|image|img|audio|speech)")
_PROJECTOR = re.compile(r"(^|\.)(multi_modal_projector|mm_projector|patch_merge_mlp|connector|aligner)\.")


def placed(info: AdapterInfo, adapter: Adapter, places: Places) -> AdapterInfo:
    """The adapter under the names of this model, by the one renaming that places all of its tensors.

    Without such a renaming: by the renaming that places most of them, for `check_fit` to name the others.
    Raises SourceInvalid for what can never be placed.
    """
    if info.layout != "peft":
        check_covered(info, adapter, places)
        return info
    info = tied.without_twins(info, adapter, places.tied, places.origins)
    found = [_placed(info, root, adapter, places) for root in ROOTS]
    whole = {
        frozenset((t.name, t.through) for t in one.tensors): one for one in found if not _missing(one, places)
    }
    if found[0] in whole.values() or len(whole) == 1:
        return next(iter(whole.values()))
    return min(found, key=lambda one: len(_missing(one, places)))


def check_fit(adapter: Adapter, info: AdapterInfo, places: Places) -> None:
    """Raises SourceInvalid naming the first tensor that the base has no place for, and why."""
    for tensor in sorted(_missing(info, places), key=lambda tensor: tensor.name):
        hint: str | None = "Was it trained on another model? Correct `base` or `path` in artifacts.toml."
        if _TOWER.search(tensor.name) or _PROJECTOR.search(tensor.name):
            what = f'tensor "{tensor.source_name}" is of a vision or audio tower, which mlx-lm does not load'
            hint = "Train the language model only (Unsloth: finetune_vision_layers = False)."
        elif any(places.is_dropped(s) for s in spellings(tensor.path)):
            what = f'tensor "{tensor.source_name}" is of a part of the base that mlx-lm does not load'
            hint = "Train the adapter without this module."
        else:
            what = f'tensor "{tensor.name}" matches nothing in base "{adapter.base}"'
        refuse(adapter, adapter.path, what, hint)


def _missing(info: AdapterInfo, places: Places) -> list[AdapterTensor]:
    return [tensor for tensor in info.tensors if not tensor.through and not places.fits(tensor.name)]


def _placed(info: AdapterInfo, root: Callable[[str], str], adapter: Adapter, places: Places) -> AdapterInfo:
    """The adapter with each tensor at its place, where it has one under this renaming."""
    tensors: list[AdapterTensor] = []
    scales: dict[str, float] = {}
    both = {t.path for t in info.tensors if t.part == "weight"} & set(info.scales)
    members: list[experts.Member] = []
    fused, ordinary = experts.split(info)
    for tensor in ordinary:
        path = root(tensor.path)
        member = experts.member(tensor, path, places) if tensor.part in lora.PAIR else None
        here = _places_of(tensor, path, info, adapter, places, merge=tensor.path in both)
        if member is not None and not any(places.fits(one.name) for one in here):
            members.append(replace(member, through=tuple(here)))
            continue
        for one in here or [_at(tensor, path)]:
            tensors.append(one)
            if tensor.part in lora.PARTS:
                scales[one.path] = info.scales[tensor.path]
    for one, scale in (
        *experts.stacked(info, adapter, members, places),
        *experts.of_parameters(info, adapter, fused, root, places),
    ):
        tensors.append(one)
        scales[one.path] = scale
    return replace(info, tensors=tuple(tensors), scales=scales)


def _places_of(
    tensor: AdapterTensor, path: str, info: AdapterInfo, adapter: Adapter, places: Places, *, merge: bool
) -> list[AdapterTensor]:
    """Where one tensor belongs, by the one spelling of its path that the checkpoint has. Empty for none."""
    found = []
    for number, spelled in enumerate(spellings(path)):
        here = _at_spelling(tensor, spelled, info, adapter, places, merge=merge)
        if here and number == 0:
            return here
        if here:
            found.append(here)
    return found[0] if len({tuple(here) for here in found}) == 1 else []


def _at_spelling(
    tensor: AdapterTensor, path: str, info: AdapterInfo, adapter: Adapter, places: Places, *, merge: bool
) -> list[AdapterTensor]:
    leaf = "weight" if tensor.part in lora.PARTS else tensor.part
    source = f"{path}.{leaf}"
    made = places.made_from(source)
    same = bool(made) and places.as_it_is(source, made)
    if places.changed_before & set(made):
        what = f'tensor "{tensor.source_name}" is for numbers that mlx-lm changed when it made this base'
        refuse(adapter, info.file.path, what, "Use the original checkpoint as the base, as it was trained.")
    if same and not merge:
        at = _at(tensor, made[0].rpartition(".")[0])
        if tensor.part not in lora.PARTS:
            at = replace(at, name=made[0], part=made[0].rpartition(".")[2])
        if places.fits(at.name):
            return [at]
    if made:
        if any(name in places.origins and places.origins[name].packed for name in made):
            what = f'tensor "{tensor.source_name}" changes "{source}", which the checkpoint holds packed'
            refuse(adapter, info.file.path, what, "Use the original, unquantized checkpoint as the base.")
        flip = not same and bool(info.config.get("fan_in_fan_out"))
        return [replace(_at(tensor, path), through=source, reaches=made, flip=flip)]
    if path.endswith(".gate_up_proj") and tensor.part in lora.PAIR:
        return _halves(tensor, path.removesuffix("gate_up_proj"), places)
    return []


def _halves(tensor: AdapterTensor, module: str, places: Places) -> list[AdapterTensor]:
    """A pair of transformers' gate_up_proj, where checkpoint and mlx-lm have two projections."""
    paths = [f"{module}{name}_proj" for name in ("gate", "up")]
    if not all(path in places.adaptable for path in paths):
        return []
    cuts, start = [], 0
    for path in paths:
        rows = places.shapes[f"{path}.weight"][0]
        cuts.append(Cut(rows=(start, start + rows, 1)) if tensor.part == "lora_b" else WHOLE)
        start += rows
    if tensor.part == "lora_b" and tensor.shape[-1] != start:
        return []
    return [
        replace(_at(tensor, path), cut=cut, shape=(tensor.shape[0], cut.rows[1] - cut.rows[0]))
        if cut.rows
        else _at(tensor, path)
        for path, cut in zip(paths, cuts, strict=True)
    ]


def _at(tensor: AdapterTensor, path: str) -> AdapterTensor:
    return replace(tensor, path=path, name=f"{path}.{tensor.part}")


__all__ = ["Places", "check_fit", "placed", "places_of"]
