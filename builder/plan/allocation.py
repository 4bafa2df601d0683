"""What was chosen for a target that asks for a size: the bits of each weight, and why. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from builder.console.words import size_text


@dataclass(frozen=True)
class Tried:
    """A size that a search measured: bits per weight, bytes of the tensors, and how it did (`said`)."""

    bits_per_weight: float
    nbytes: int
    passes: bool
    said: str


@dataclass(frozen=True)
class Allocation:
    """The bits of each weight of a target, and what was measured to choose them.

    `bits`: those that do not have `common` bits, or have groups of another size. `groups`: the sizes of these
    groups. `cost`: nats for each token, by path, with `common` bits. The divergences, in nats for each token,
    are of `held` tokens that nothing was rounded for: of the target with `common` bits everywhere, and with
    `bits`. `kept` says which of both the target is. `held` is 0 where only the same bits everywhere were
    tried. `ways`: the divergence of each way to share the bytes that was measured, by its name. `tried`: the
    sizes that a search measured, in its order.
    """

    common: int
    bits: Mapping[str, int]
    cost: Mapping[str, float]
    uniform_divergence: float
    divergence: float
    held: int
    kept: bool
    tried: tuple[Tried, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    ways: Mapping[str, float] = field(default_factory=dict)

    @property
    def chosen(self) -> Mapping[str, int]:
        """The bits of weights that do not have the common setting."""
        return self.bits if self.kept else {}

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


def from_text(text: str) -> Allocation:
    """What `to_text` wrote. Raises ValueError, TypeError."""
    data = json.loads(text)
    tried = tuple(Tried(**each) for each in data.pop("tried", ()))
    return Allocation(**data, tried=tried)


def explained(found: Allocation) -> tuple[str, ...]:
    """Why each weight has its bits, one line each, the dearest first."""
    searched = tuple(
        f"{each.bits_per_weight:.4g} bits per weight ({size_text(each.nbytes)}): {each.said}"
        for each in sorted(found.tried, key=lambda each: each.nbytes)
    )
    if not found.held:
        return searched
    both = (
        f"on {found.held} tokens that nothing was rounded for, KL is {found.uniform_divergence:.4g} with"
        f" {found.common} bits for every weight, and {found.divergence:.4g} with own bits for"
        f" {len(found.bits)} of {len(found.cost)}: {'these are' if found.kept else 'they are not'} used"
    )
    dearest = sorted(found.chosen, key=lambda path: (-found.cost.get(path, 0.0), path))
    return (*searched, both, *(_one(found, path) for path in dearest))


def _one(found: Allocation, path: str) -> str:
    """Why a weight has its bits."""
    groups = f" in groups of {found.groups[path]}" if path in found.groups else ""
    return f"{path}: {found.bits[path]} bits{groups}, costs {found.cost[path]:.2g} of KL at {found.common}"
