"""Low-rank pairs of experts: one pair for each expert, or PEFT's one pair for all experts of a layer. Pure.

mlx-lm stacks the experts of a layer into one weight (experts, out, in) for each projection. Its pair has the
shapes (experts, r, in) and (experts, out, r).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from builder.errors import SourceInvalid
from builder.sources.adapters import peft
from builder.sources.adapters.model import Places
from builder.sources.adapters.names import spellings
from builder.sources.adapters.types import AdapterInfo, AdapterTensor, Cut, refuse, table_of
from builder.spec.types import Adapter

_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,5})\.(\w+)")
# What mlx-lm calls the projections of an expert (the `sanitize` of mixtral, lfm2_moe, nemotron_h ...).
_PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "up_proj": ("fc1",),
    "down_proj": ("fc2",),
}
_CONTAINERS = ("switch_mlp", "switch_glu", "experts")  # where mlx-lm keeps the stacks
# Parameters of transformers' experts, and the stacks of mlx-lm whose rows they hold, one after the other.
_PARAMETERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"),),
    "up_proj": (("up_proj",), ("fc1",)),
    "gate_proj": (("gate_proj",),),
    "down_proj": (("down_proj",), ("fc2",)),
    "input_linear": (("gate_proj", "up_proj"),),
    "output_linear": (("down_proj",),),
}
_INTERLEAVED = frozenset({"gpt_oss"})  # gate and up take turns in transformers' weight (experts, in, out)
# transformers stores (experts, in, out) without the mark (is_transposed) that PEFT looks for.
_UNMARKED = frozenset({"llama4", "llama4_text"})
_SWAPS_SINCE = (0, 19)  # the version of PEFT that takes (experts, out, in) as out and in

Scaled = tuple[AdapterTensor, float]


# -- one pair for each expert ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A tensor of one expert: the stack it belongs to, its number, and its own way through the checkpoint."""

    tensor: AdapterTensor
    stack: str
    number: int
    through: tuple[AdapterTensor, ...] = ()


def member(tensor: AdapterTensor, path: str, places: Places) -> Member | None:
    """The tensor as one of a stack of mlx-lm, if its path names an expert and the model has the stack."""
    for spelled in spellings(path):
        match = _EXPERT.fullmatch(spelled)
        stack = _stack(match[1], match[3], places) if match else None
        if match and stack:
            return Member(tensor, stack, int(match[2]))
    return None


def stacked(info: AdapterInfo, adapter: Adapter, members: list[Member], places: Places) -> Iterator[Scaled]:
    """One pair for each stack, with its scale. Pairs that do not stack go through the checkpoint.

    Raises SourceInvalid where the checkpoint has no tensor for each expert either.
    """
    sets: dict[str, dict[str, dict[int, Member]]] = {}  # stack -> part -> expert -> member
    for one in members:
        sets.setdefault(one.stack, {}).setdefault(one.tensor.part, {})[one.number] = one
    for stack, parts in sets.items():
        problem = next(
            (p for found in parts.values() for p in _problems(info, found, places.experts(stack))), None
        )
        if problem and all(one.through for found in parts.values() for one in found.values()):
            for one in (one for found in parts.values() for one in found.values()):
                yield from ((tensor, info.scales[one.tensor.path]) for tensor in one.through)
            continue
        if problem:
            raise SourceInvalid(
                table=table_of(adapter),
                path=adapter.path,
                what=f'the experts of "{stack}" are one weight in mlx-lm, and {problem}',
                hint="Train the same low-rank pair on every expert of a layer, or on none.",
            )
        for part, found in parts.items():
            ordered = [found[number].tensor for number in sorted(found)]
            names = tuple(name for tensor in ordered for name in tensor.source_names)
            first = ordered[0]
            shape = (len(ordered), *(first.shape[::-1] if first.transpose else first.shape))
            made = AdapterTensor(f"{stack}.{part}", stack, part, names, False, first.dtype, shape)
            yield made, info.scales[first.path]


def _stack(module: str, projection: str, places: Places) -> str | None:
    """The stacked module of one projection of the experts of `module`, if this model has it as it is."""
    for name in (projection, *_PROJECTIONS.get(projection, ())):
        for container in _CONTAINERS:
            path = f"{module}.{container}.{name}"
            if path in places.adaptable and places.experts(path) and _only_moved(path, places):
                return path
    return None


def _only_moved(path: str, places: Places) -> bool:
    """Whether mlx-lm stacks and splits what it makes this weight of, and does not change its numbers."""
    origin = places.origins.get(f"{path}.weight")
    return origin is None or origin.packed or not origin.arithmetic


def _problems(info: AdapterInfo, found: Mapping[int, Member], count: int) -> Iterator[str]:
    tensors = {number: one.tensor for number, one in found.items()}
    if missing := sorted(set(range(count)) - set(tensors)):
        yield f"the adapter holds {len(tensors)} of {count} (number {missing[0]} is missing)"
    if stray := sorted(set(tensors) - set(range(count))):
        yield f"the adapter holds number {stray[0]}, but there are only {count}"
    if len({(tensor.shape, tensor.dtype) for tensor in tensors.values()}) > 1:
        yield "the adapter's pairs have different shapes or types"
    if len({info.scales[tensor.path] for tensor in tensors.values()}) > 1:
        yield "the adapter's pairs have different scales"


# -- one pair for all experts: PEFT's target_parameters -----------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """lora_A (r * experts, in) and lora_B (out, r * experts) of one parameter, both transposed."""

    a: AdapterTensor
    b: AdapterTensor

    @property
    def widths(self) -> tuple[int, int]:
        """in and out."""
        return self.a.shape[0], self.b.shape[1]


def split(info: AdapterInfo) -> tuple[dict[str, list[_Pair]], list[AdapterTensor]]:
    """The pairs of target_parameters of experts by module path, and all other tensors.

    PEFT nests the wrappers of a module: `experts.base_layer.lora_A` belongs to the parameter that is wrapped
    first.
    """
    fused: dict[str, list[_Pair]] = {}
    rest: list[AdapterTensor] = []
    by_path: dict[str, dict[str, AdapterTensor]] = {}
    for tensor in info.tensors:
        by_path.setdefault(tensor.path, {})[tensor.part] = tensor
    for path, parts in by_path.items():
        module = peft.unwrapped(path)
        names = peft.parameters(info.config, module)
        last = module.rpartition(".")[2]
        if "lora_a" in parts and (set(names) & set(_PARAMETERS) or (names and last in _PARAMETERS)):
            fused.setdefault(module, []).append(_Pair(parts["lora_a"], parts["lora_b"]))
        else:
            rest += parts.values()
    return fused, rest


def of_parameters(
    info: AdapterInfo,
    adapter: Adapter,
    fused: Mapping[str, list[_Pair]],
    root: Callable[[str], str],
    places: Places,
) -> Iterator[Scaled]:
    """The pairs of target_parameters as pairs of mlx-lm's stacks, with their scales. Raises SourceInvalid."""
    for module, pairs in fused.items():
        found = [stacks for spelled in spellings(root(module)) for stacks in _stacks(spelled, places)]
        names = peft.parameters(info.config, module)
        last = module.rpartition(".")[2]
        for pair in pairs:
            fits = [
                (name, stacks, swapped)
                for name, stacks in found
                if name in names or name == last
                for swapped in (False, True)
                if pair.widths == (_widths(stacks, places)[::-1] if swapped else _widths(stacks, places))
            ]
            if not fits:
                yield from (
                    (replace(t, path=root(t.path), name=f"{root(t.path)}.{t.part}"), 0.0)
                    for t in (pair.a, pair.b)
                )
                continue
            name, stacks, swapped = _only(fits, info, adapter, pair, places)
            yield from _cut(
                info, adapter, pair, module if name == last else f"{module}.{name}", stacks, swapped, places
            )


def _stacks(module: str, places: Places) -> Iterator[tuple[str, list[str]]]:
    """Parameter of transformers' experts -> the stacks of mlx-lm whose rows it holds."""
    parent, _, last = module.rpartition(".")
    for name, choices in _PARAMETERS.items():
        if last in _PARAMETERS and name != last:
            continue
        for projections in choices:
            for container in _CONTAINERS:
                paths = [f"{parent}.{container}.{projection}" for projection in projections]
                if all(places.experts(path) and path in places.adaptable for path in paths):
                    yield name, paths


def _widths(stacks: list[str], places: Places) -> tuple[int, int]:
    """in and out of the parameter that holds these stacks (experts, out, in)."""
    shapes = [places.shapes[f"{path}.weight"] for path in stacks]
    return shapes[0][2], sum(shape[1] for shape in shapes)


def _only(
    fits: list[tuple[str, list[str], bool]], info: AdapterInfo, adapter: Adapter, pair: _Pair, places: Places
) -> tuple[str, list[str], bool]:
    """The one parameter that a pair fits. A square one fits twice: PEFT's version decides.

    Raises SourceInvalid.
    """
    straight = [fit for fit in fits if not fit[2]]
    known = peft.version(info.config) >= _SWAPS_SINCE and places.family not in _UNMARKED
    if len(straight) == 1 and (known or places.family in _INTERLEAVED):
        return straight[0]
    if len(fits) > 1:
        what = f'tensor "{pair.a.source_name}" fits more than one place, since the experts are square'
        refuse(adapter, info.file.path, what, "Save the adapter again with PEFT 0.19 or later.")
    return fits[0]


def _cut(
    info: AdapterInfo,
    adapter: Adapter,
    pair: _Pair,
    key: str,
    stacks: list[str],
    swapped: bool,
    places: Places,
) -> Iterator[Scaled]:
    """A pair of all experts as one pair for each stack."""
    count = places.experts(stacks[0])
    try:
        rank, scale = peft.rank(info.config, key), peft.scale(info.config, key)
    except peft.Unfit as error:
        refuse(adapter, info.file.path, str(error))
    if pair.a.shape[1] != rank * count or pair.b.shape[0] != rank * count:
        what = f'tensors of "{key}" have {pair.a.shape[1]} ranks, not {rank} for each of {count} experts'
        refuse(adapter, info.file.path, what)
    if bad := next((path for path in stacks if not _only_moved(path, places)), None):
        what = (
            f'mlx-lm changes the numbers of "{bad}" while it loads them, so an adapter on it cannot be fused'
        )
        refuse(adapter, info.file.path, what, "Merge the adapter in transformers first.")
    start = 0
    for number, path in enumerate(stacks):
        _, out, width = places.shapes[f"{path}.weight"]
        rows = None if len(stacks) == 1 else (start, start + out, 1)
        if rows and places.family in _INTERLEAVED:
            rows = (number, len(stacks) * out, len(stacks))
        start += out
        first, second = (pair.b, pair.a) if swapped else (pair.a, pair.b)
        for part, tensor, shape in (
            ("lora_a", first, (count, rank, width)),
            ("lora_b", second, (count, out, rank)),
        ):
            cut = Cut(count, swapped, rows)
            yield (
                AdapterTensor(
                    f"{path}.{part}", path, part, tensor.source_names, False, tensor.dtype, shape, cut
                ),
                scale,
            )
