"""Describes each declared base, target and variant in one line, for `doit list`."""

from __future__ import annotations

from builder.console.words import from_here
from builder.spec.types import Adapter, Base, GgufSource, HfSource, Target, Variant


def describe_base(base: Base) -> str:
    """Where the weights of a base come from."""
    match base.source:
        case GgufSource(location):
            return f"base weights, from {location}"
        case HfSource(repo, revision):
            return f"base weights, {repo} at {revision}"
        case other:
            return f"base weights, from {from_here(other.path)}"


def describe_adapter(adapter: Adapter) -> str:
    """Where an adapter comes from."""
    if adapter.train is not None:
        return f"adapter on {adapter.base}, trained from {from_here(adapter.train.data)}"
    return f"adapter on {adapter.base}, from {from_here(adapter.path)}"


def describe_target(target: Target) -> str:
    """The base, the adapter and the variant of a target."""
    model = target.model
    what = f"{model.base} + {model.adapter}" if model.adapter else model.base
    text = f"{what}, {describe_variant(target.variant)}"
    return f"{text} (intermediate)" if target.variant.intermediate else text


def describe_variant(variant: Variant) -> str:
    """How a variant stores weights."""
    kind = f", {variant.dtype}" if variant.dtype else ""
    if variant.experts is not None:
        kind += f", {variant.experts}"
    if variant.calibrated is not None:
        kind += ", calibrated" if variant.rounds_for_text else ", rounded to nearest"
    if variant.gguf is not None:
        return f"GGUF {variant.gguf.type}{f' of {variant.gguf.of}' if variant.gguf.of else ''}"
    if variant.goal is not None:
        return f"{variant.goal}, group size {variant.group_size}{kind}"
    if variant.recipe is not None:
        return f"{variant.recipe}, group size {variant.group_size}{kind}"
    if (learned := variant.learned) is not None and learned.start is not None:
        return f"{learned.method} from {learned.source} on top of {learned.start}"
    if learned is not None and variant.quantization is not None:
        bits, size = variant.quantization.bits, variant.quantization.group_size
        return f"{learned.method} from {learned.source}, {bits}-bit, group size {size}"
    if variant.quantization is None:
        left = f", {variant.experts}" if variant.experts else ""
        return f"{variant.dtype or 'unquantized'}{left}"
    how = variant.quantization
    mode = "" if how.mode == "affine" else f" {how.mode}"
    return f"{how.bits}-bit{mode}, group size {how.group_size}{kind}"
