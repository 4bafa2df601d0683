"""Targets that ask for a size: from `target = "4.7bpw"` to the bits of each weight. Pure.

A target with a goal has the same bits everywhere first: the most that fit. What each weight costs there is
measured. Then the bytes are shared in several ways (`WAYS`), which differ in how much they trust what was
measured. All of them are compared by true KL, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from builder.console.words import size_text
from builder.keys import Key, named_key
from builder.plan.allocation import Allocation
from builder.plan.layout import layout_of
from builder.plan.parts import measured_base, measured_text, rounding_of
from builder.plan.quantization import PlanError
from builder.plan.solver import allocate, item, nbytes, smoothed, steeper
from builder.sources.facts import AdapterFacts, BaseFacts, Calibration
from builder.spec.quantizers import MODES, NEAREST, Goal
from builder.spec.types import Override, Quantization, Target

_BITS = MODES["affine"][0]
# Of the rules by which bits are chosen, for each way to round. Another number chooses again.
ALLOCATION: Mapping[str, int] = {"calibrated": 2, NEAREST: 3}
SENSITIVITY = 4  # of how costs are measured
_GROUPS = (32, 64, 128)
_MEASURED = 4  # bits with which costs of plain rounding are measured


@dataclass(frozen=True)
class Way:
    """A way to share the bytes. `own`: how much a measured cost counts beside the mean of its kind.

    takes: whether weights may get fewer bits than the common ones. steep: the power of an error that is
    larger than the measured one, with which its cost grows. To second order it is 1. With 2 and 3 bits
    the errors are so large that they cost more.
    """

    own: float
    takes: bool
    steep: float = 1.0


WAYS: Mapping[str, Way] = {
    "all": Way(0.8, True),
    "more": Way(0.8, False),
    "kinds": Way(0.4, True),
    "steep": Way(0.4, True, 1.6),
}
_DEAR = ("all", "more")  # the ways that are tried where each must be rounded for a text


@dataclass(frozen=True)
class Measured:
    """`cost`: what each weight costs in the setting `at`. `errors`: of each setting that it may have."""

    cost: Mapping[str, float]
    errors: Mapping[str, Mapping[Quantization, float]]
    at: Quantization

    def cost_with(self, path: str, how: Quantization) -> float:
        """What a weight costs in another setting."""
        known = self.errors.get(path, {})
        if how == self.at or not known.get(self.at):
            return self.cost[path]
        return self.cost[path] * known[how] / known[self.at]


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
    rules = ALLOCATION["calibrated" if target.variant.rounds_for_text else NEAREST]
    parts |= {"allocation": rules, "sensitivity": SENSITIVITY, "goal": str(target.variant.goal)}
    return named_key("allocation/1", parts | ({"questions": questions} if questions else {}))


def sensitivity_key(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, text: Calibration, toolchain: str
) -> Key:
    """The key of what each weight costs, where all have the bits of `target`. No size is in it."""
    how = target.variant.quantization
    assert how is not None
    parts = _measured_parts(target, base, adapter, text, toolchain)
    return named_key("sensitivity/1", {**parts, "bits": how.bits, "sensitivity": SENSITIVITY})


def _measured_parts(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, text: Calibration, toolchain: str
) -> dict[str, object]:
    variant = target.variant
    return {
        "rounding": rounding_of(base) if variant.rounds_for_text else NEAREST,
        **measured_base(base, adapter),
        **(
            {"experts": [[block, base.pruned.digest(block)] for block in base.pruned.kept]}
            if base.pruned
            else {}
        ),
        "dtype": variant.dtype or base.structure.default_dtype,
        "group_size": variant.group_size,
        **measured_text(variant.calibrated, base, text),
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


def with_bits(target: Target, common: int, own: Mapping[str, Quantization]) -> Target:
    """The target with `common` bits, and with the settings in `own` for those paths."""
    variant = target.variant
    chosen = tuple(Override(path, how) for path, how in sorted(own.items()))
    usual = Quantization(common, variant.group_size)
    return Target(target.model, replace(variant, quantization=usual, overrides=chosen))


def measured_with(made: Target) -> Target:
    """The target that costs are measured of: with the common bits, or for plain rounding one for all sizes.

    made: the target that `uniform` gave.
    """
    return made if made.variant.rounds_for_text else with_bits(made, _MEASURED, {})


def choices(made: Target, base: BaseFacts) -> dict[str, tuple[Quantization, ...]]:
    """Path -> the settings that it may have, of all weights that have the common bits of `made`.

    For plain rounding they are measured once for all sizes. Else they are those of any way (`_allowed`).
    """
    how = made.variant.quantization
    assert how is not None
    widths = {p.tensor.name.removesuffix(".weight"): p.tensor.shape[-1] for p in base.structure.parameters}
    least = how.bits - 1 if made.variant.rounds_for_text else min(_BITS)
    allowed = [bits for bits in _BITS if bits >= least]
    found = {}
    for path, each in layout_of(made, base).quantization.items():
        if each == how:
            groups = [group for group in sorted({*_GROUPS, how.group_size}) if widths[path] % group == 0]
            found[path] = tuple(Quantization(bits, group) for bits in allowed for group in groups)
    return found


def shared(made: Target, base: BaseFacts, measured: Measured) -> dict[str, dict[str, Quantization]]:
    """Way -> the paths that do not have the common setting, within the goal's budget. Ways that differ only.

    made: the target that `uniform` gave.
    """
    variant = made.variant
    how, goal = variant.quantization, variant.goal
    assert how is not None
    assert goal is not None
    sizes = {p.tensor.name.removesuffix(".weight"): p.tensor.elements for p in base.structure.parameters}
    elements = {path: sizes[path] for path in choices(made, base)}
    spent = sum(nbytes(size, how) for size in elements.values())
    budget = spent + goal.budget(base.structure.parameter_count) - tensor_bytes(made, base)
    found: dict[str, dict[str, Quantization]] = {}
    for name, way in WAYS.items():
        if variant.rounds_for_text and name not in _DEAR:
            continue
        cost = smoothed(measured.cost, elements, way.own)
        items = []
        for path, size in elements.items():
            allowed = _allowed(measured.errors[path], how, way.takes)
            at = measured.errors[path][measured.at]
            items.append(item(path, size, cost[path], at, steeper(allowed, at, way.steep)))
        own = {path: each for path, each in allocate(items, budget).items() if each != how}
        if own and own not in found.values():
            found[name] = own
    return found


def _allowed(
    errors: Mapping[Quantization, float], how: Quantization, takes: bool
) -> dict[Quantization, float]:
    """The settings that a way may choose. A weight that the common setting stores exactly keeps it."""
    if errors[how] == 0:
        return {how: 0.0}
    return {each: error for each, error in errors.items() if each.bits >= how.bits - takes}


def tensor_bytes(target: Target, base: BaseFacts) -> int:
    """Bytes of all tensors of a target."""
    return sum(tensor.nbytes for block in layout_of(target, base).blocks for tensor in block.tensors)


def with_allocation(target: Target, found: Allocation) -> Target:
    """The target as it was chosen."""
    group = target.variant.group_size
    own = {path: Quantization(bits, found.groups.get(path, group)) for path, bits in found.chosen.items()}
    return with_bits(target, found.common, own)


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
