"""Targets that ask for a size: from `target = "4.7bpw"` to the bits of each weight. Pure.

A target with a goal is rounded with the same bits everywhere first: the most that fit. What that costs is
measured, and what is left of the budget goes to the weights where more bits save most. No weight gets fewer:
at the size of the example, taking bits from some weights cost more than it was estimated to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from builder.console.words import size_text
from builder.keys import Key, named_key
from builder.plan.allocation import Allocation, allocate, items, nbytes
from builder.plan.layout import layout_of
from builder.plan.parts import measured_text, rounding_of
from builder.plan.quantization import PlanError
from builder.sources.facts import AdapterFacts, BaseFacts, Calibration
from builder.spec.quantizers import NEAREST, Goal
from builder.spec.types import MODES, Override, Quantization, Target

_BITS = MODES["affine"][0]
ALLOCATION = 1  # of the rules by which bits are chosen. Another number chooses again


def allocation_key(
    target: Target,
    base: BaseFacts,
    adapter: AdapterFacts | None,
    text: Calibration,
    toolchain: str,
    questions: Key | None = None,
) -> Key:
    """The key of what is chosen: everything that the measurement and the choice depend on.

    questions: for a target that searches its size, what its model requires and asks.
    """
    parts = _measured_parts(target, base, adapter, text, toolchain)
    parts |= {"allocation": ALLOCATION, "goal": str(target.variant.goal)}
    return named_key("allocation/1", parts | ({"questions": questions} if questions else {}))


def sensitivity_key(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, text: Calibration, toolchain: str
) -> Key:
    """The key of what each weight costs, where all have the bits of `target`. No size is in it."""
    how = target.variant.quantization
    assert how is not None
    parts = _measured_parts(target, base, adapter, text, toolchain)
    return named_key("sensitivity/1", {**parts, "bits": how.bits})


def _measured_parts(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, text: Calibration, toolchain: str
) -> dict[str, object]:
    variant = target.variant
    return {
        "rounding": rounding_of(base) if variant.rounds_for_text else NEAREST,
        "base_digest": base.weights,
        "repairs": sorted(base.structure.repairs),
        **(
            {"experts": [[block, base.pruned.digest(block)] for block in base.pruned.kept]}
            if base.pruned
            else {}
        ),
        "slices": sorted(adapter.slices.items()) if adapter else [],
        "dtype": variant.dtype or base.structure.default_dtype,
        "group_size": variant.group_size,
        **measured_text(variant, base, text),
        "toolchain": toolchain or None,
    }


def uniform(target: Target, base: BaseFacts) -> Target:
    """The target with the most bits for all weights that fit. Raises PlanError where nothing fits."""
    variant = target.variant
    assert variant.goal is not None
    assert not variant.goal.smallest, "its size is searched"
    budget = variant.goal.budget(base.structure.parameter_count)
    size = 0
    for bits in sorted(_BITS, reverse=True):
        made = with_bits(target, bits, {})
        size = tensor_bytes(made, base)
        if size <= budget:
            return made
    raise PlanError(
        table=f"variant.{variant.name}",
        what=f"target {variant.goal} is {size_text(budget)}. With 2 bits for each weight"
        f" {target.model.name} has {size_text(size)}.",
        hint="Ask for more, or take a smaller base.",
    )


def rungs(target: Target, base: BaseFacts) -> dict[int, int]:
    """Bits for all weights alike -> bytes of the target, from small to large."""
    return {bits: tensor_bytes(with_bits(target, bits, {}), base) for bits in sorted(_BITS)}


def between(small: int, large: int) -> tuple[int, ...]:
    """The sizes that are tried between two sizes, in bytes: eighths, from small to large."""
    return tuple(small + (large - small) * eighth // 8 for eighth in range(1, 8))


def sized(target: Target, nbytes: int) -> Target:
    """The target with a size as its goal."""
    return Target(target.model, replace(target.variant, goal=Goal(nbytes=nbytes)))


def with_bits(target: Target, common: int, more: Mapping[str, int]) -> Target:
    """The target with `common` bits, and with the bits in `more` for those paths."""
    variant = target.variant
    group = variant.group_size
    chosen = tuple(Override(path, Quantization(bits, group)) for path, bits in sorted(more.items()))
    return Target(target.model, replace(variant, quantization=Quantization(common, group), overrides=chosen))


def chosen_bits(made: Target, base: BaseFacts, cost: Mapping[str, float]) -> dict[str, int]:
    """The paths that get more than the common bits, within the goal's budget.

    made: the target that `uniform` gave. cost: what each path costs in nats for each token.
    """
    how, goal = made.variant.quantization, made.variant.goal
    assert how is not None
    assert goal is not None
    sizes = {p.tensor.name.removesuffix(".weight"): p.tensor for p in base.structure.parameters}
    quantized = layout_of(made, base).quantization
    elements = {path: sizes[path].elements for path, each in quantized.items() if each == how}
    left = goal.budget(base.structure.parameter_count) - tensor_bytes(made, base)
    spent = sum(nbytes(size, how.bits, how.group_size) for size in elements.values())
    found = items(cost, elements, dict.fromkeys(elements, how.bits))
    choices = [bits for bits in _BITS if bits >= how.bits]
    bits = allocate(found, choices, how.group_size, spent + left)
    return {path: each for path, each in bits.items() if each != how.bits}


def tensor_bytes(target: Target, base: BaseFacts) -> int:
    """Bytes of all tensors of a target."""
    return sum(tensor.nbytes for block in layout_of(target, base).blocks for tensor in block.tensors)


def with_allocation(target: Target, found: Allocation) -> Target:
    """The target as it was chosen."""
    return with_bits(target, found.common, found.chosen)


def share_key(
    target: Target,
    base: BaseFacts,
    adapter: AdapterFacts | None,
    text: Calibration,
    toolchain: str,
    questions: Key,
) -> Key:
    """The key of the share that is chosen. `base` has all experts."""
    wanted = target.variant.experts
    assert wanted is not None
    search = allocation_key(target, base, adapter, text, toolchain, questions)
    parts = {"search": search, "choices": list(wanted.choices), "criterion": wanted.criterion}
    return named_key("share/1", parts)


def with_share(target: Target, share: float) -> Target:
    """The target with one share of the experts."""
    wanted = target.variant.experts
    assert wanted is not None
    one = None if share == 1 else replace(wanted, share=share, choices=())
    return Target(target.model, replace(target.variant, experts=one))
