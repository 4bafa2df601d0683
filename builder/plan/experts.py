"""Targets that keep a share of their experts: from `experts = 0.75` to the experts that stay. Pure.

What a text says of the experts is measured once for a base, an adapter and a text, whatever the share and the
criterion are. Until then such a target has no plan, as a base that was never read has none.
"""

from __future__ import annotations

from dataclasses import replace

from builder.keys import Key, named_key
from builder.plan.parts import measured_base, measured_text
from builder.plan.quantization import PlanError
from builder.sources.facts import AdapterFacts, BaseFacts, Calibration
from builder.spec.types import Target
from builder.weights.experts import Pruned, Routing

ROUTING = 1  # of what builder.engine.routing measures. Another number measures again
TENTH = 10  # the share of experts, as 1 / TENTH, whose loss says whether more can go
WAITS = "its experts are not measured yet"
_NAMES = {"reap": "REAP", "frequency": "frequency", "ean": "EAN"}


def routing_key(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, text: Calibration, toolchain: str
) -> Key:
    """The key of what is measured. No share, no criterion and no bits are in it."""
    parts = {
        "routing": ROUTING,
        **measured_base(base, adapter),
        **measured_text(target.variant.calibrated, base, text),
        "toolchain": toolchain or None,
    }
    return named_key("routing/1", parts)


def pruned(target: Target, base: BaseFacts, found: Routing, key: Key) -> BaseFacts:
    """The base without the experts that the target leaves out. Raises PlanError."""
    wanted = target.variant.experts
    assert wanted is not None
    return _without(base, found, kept_of(target, found), wanted.criterion, key)


def kept_of(target: Target, found: Routing) -> int:
    """How many experts of each layer stay. Raises PlanError for a number that the router cannot work with."""
    wanted = target.variant.experts
    assert wanted is not None
    keep, least = round(wanted.share * found.count), _least(found)
    said = f"experts = {wanted.share:g} keeps {keep} of {found.count} experts in each layer"
    if keep < least:
        raise PlanError(
            table=f"variant.{target.variant.name}",
            what=f"{said}, but the router needs {least}: a token goes to {found.top_k}.",
            hint=f"Keep at least {_share(least, found.count)}.",
        )
    if keep >= found.count:
        raise PlanError(
            table=f"variant.{target.variant.name}",
            what=f"{said}: nothing is left out.",
            hint=f"Write a smaller share, for example {_share(found.count - found.groups, found.count)}.",
        )
    if keep % found.groups:
        near = max(least, keep // found.groups * found.groups)
        raise PlanError(
            table=f"variant.{target.variant.name}",
            what=f"{said}, but the router has {found.groups} groups of experts, which must stay equal.",
            hint=f"Keep {_share(near, found.count)} or {_share(near + found.groups, found.count)}.",
        )
    return keep


def a_tenth_less(base: BaseFacts, found: Routing, key: Key) -> BaseFacts | None:
    """The base without a tenth of its experts, by REAP. None where the router leaves no choice."""
    keep = found.count - max(1, found.count // TENTH)
    keep -= keep % found.groups
    return None if keep < _least(found) else _without(base, found, keep, "reap", key)


def _least(found: Routing) -> int:
    """How many experts of each layer the router needs."""
    if found.groups > 1:  # a router of groups looks at the best two of each, and opens some of them
        return max(found.groups * 2, -(-found.top_k // found.open_groups) * found.groups)
    return max(found.top_k, 1)


def _without(base: BaseFacts, found: Routing, keep: int, criterion: str, key: Key) -> BaseFacts:
    """The base with `keep` experts in each layer, the best by a criterion."""
    kept = found.kept(keep, criterion)
    made = Pruned(found.setting, found.count, kept, found.places, base.structure, key)
    return replace(base, structure=made.structure, pruned=made)


def explained(target: Target, found: Routing) -> tuple[str, ...]:
    """Which experts a target keeps and why, one line each."""
    wanted = target.variant.experts
    assert wanted is not None
    keep = kept_of(target, found)
    name = _NAMES[wanted.criterion]
    lines = [f"keeps {keep} of {found.count} experts in each layer by {name} over {found.tokens} tokens"]
    if wanted.criterion == "reap":
        lost = [_lost(found, block, keep) for block in found.layers]
        worst = max(zip(lost, found.layers, strict=True))
        lines.append(
            f"what is left out adds {sum(lost) / len(lost):.1%} of what all experts add on this text, at most"
            f" {worst[0]:.1%}, in {worst[1]}"
        )
    never = sum(times == 0 for each in found.layers.values() for times in each.chosen)
    if never:
        total = found.count * len(found.layers)
        lines.append(f"{never} of {total} experts were never chosen on this text")
    if found.tenth is not None:
        lines.append(tenth_in_words(found))
    return tuple(lines)


def tenth_in_words(found: Routing) -> str:
    """What the first tenth costs."""
    return f"without a tenth of the experts, KL on {found.held} other tokens is {found.tenth:.3g}"


def _lost(found: Routing, block: str, keep: int) -> float:
    """The part of the weighted norms of a layer that belongs to experts that are left out by REAP."""
    each = found.layers[block]
    kept = set(each.best(keep, "reap", found.groups))
    total = sum(each.weighted)
    left = sum(value for at, value in enumerate(each.weighted) if at not in kept)
    return left / total if total else 0.0


def _share(keep: int, count: int) -> str:
    return f"{keep / count:.6g} ({keep} of {count})"
