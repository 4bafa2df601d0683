"""The named parts of the keys: everything that can change the bytes, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from builder.keys import Key, make_key, named_key
from builder.plan.layout import BlockLayout, Layout, layout_of
from builder.plan.types import GENERATION
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Calibration
from builder.spec.quantizers import Calibrated
from builder.spec.types import Target, Variant


def block_parts(
    base: BaseFacts, block: BlockLayout, adapted: Key | None, dtype: str | None, toolchain: str
) -> dict[str, object]:
    """Everything that can change the bytes of one block of one variant, by name."""
    return {
        **_repaired(base, _IN_WEIGHTS),
        "base_digest": base.weights,
        "block": block.block,
        **_cut(base, block.block),
        "slices_digest": adapted,
        "dtype": dtype,
        "tensors_digest": block.layout,
        "quantization_digest": block.quantization,
        "toolchain": toolchain or None,
    }


def rounded_parts(
    parts: Mapping[str, dict[str, object]],
    layers: Set[str],
    variant: Variant,
    base: BaseFacts,
    text: Calibration,
) -> dict[str, dict[str, object]]:
    """The parts of each block of a calibrated variant.

    A block is rounded for what the rounded blocks before it return. So each key holds all keys before it.
    What an adapter changes outside of the layers may stand behind the layers and work in all of them, as the
    inputs of each layer of gemma3n do. So all keys hold it.
    """
    how = variant.calibrated
    assert how is not None
    templated = text.format == "jsonl"  # a plain text becomes tokens without the chat template
    own = {
        "rounding": rounding_of(base),
        "calibration_digest": text.digest,
        "calibration_format": text.format,
        "prompts_digest": base.identity.prompts if templated else None,
        "vocabulary_digest": None if templated else base.identity.vocabulary,
        "samples": how.samples,
        "sequence_length": how.sequence_length,
        "outside_digest": _outside(parts, layers),
    }
    made: dict[str, dict[str, object]] = {}
    before: Key | None = None
    for block in parts:
        made[block] = {**parts[block], **own, "before_digest": before}
        before = named_key("before/1", {"before": before, "block": named_key("rounded/1", made[block])})
    return made


def measured_base(base: BaseFacts, adapter: AdapterFacts | None) -> dict[str, object]:
    """The model that something is measured of: all weights of its base, and what the adapter changes."""
    return {
        "base_digest": base.weights,
        "repairs": sorted(base.structure.repairs),
        "slices": sorted(adapter.slices.items()) if adapter else [],
    }


def measured_text(how: Calibrated | None, base: BaseFacts, text: Calibration) -> dict[str, object]:
    """The text that something is measured with, and how it becomes tokens."""
    assert how is not None, "it has no text"
    return {
        "calibration_digest": text.digest,
        "calibration_format": text.format,
        "prompts_digest": base.identity.prompts,
        "samples": how.samples,
        "sequence_length": how.sequence_length,
    }


def rounding_of(base: BaseFacts) -> object:
    """The version of what rounds a base. With experts there is more to it."""
    stacks = any(len(parameter.tensor.shape) == 3 for parameter in base.structure.parameters)
    return [ROUNDING, EXPERTS] if stacks else ROUNDING


def layers_of(blocks: Sequence[BlockLayout]) -> frozenset[str]:
    """The blocks that are layers: numbered, and more than one projection or embedding."""
    return frozenset(
        each.block
        for each in blocks
        if each.block.rpartition(".")[2].isdigit()
        and any("." in tensor.name.removeprefix(f"{each.block}.") for tensor in each.tensors)
    )


def _outside(parts: Mapping[str, dict[str, object]], layers: Set[str]) -> Key | None:
    """What the adapter changes outside of the layers."""
    found = [
        [block, slices]
        for block, each in parts.items()
        if (slices := each["slices_digest"]) is not None and block not in layers
    ]
    return make_key("outside/1", found) if found else None


def config_parts(variant: Variant, base: BaseFacts, layout: Layout, toolchain: str) -> dict[str, object]:
    """Everything that can change config.json, by name: mlx-lm merges generation_config.json into it."""
    how = variant.quantization
    merged = [entry.blob.digest for entry in base.aux if entry.name == GENERATION]
    paths = sorted([path, q.bits, q.group_size, q.mode] for path, q in layout.quantization.items())
    return {
        **_repaired(base, set(base.structure.repairs)),
        **({"experts": base.pruned.keep} if base.pruned else {}),
        "config_digest": base.identity.config,
        "generation_digest": merged[0] if merged else None,
        "dtype": layout.dtype,
        "dtype_asked": variant.dtype,
        "paths_digest": make_key("paths/1", paths),
        "common": None if how is None else [how.bits, how.group_size, how.mode],
        "recipe": variant.recipe and [variant.recipe, variant.group_size],
        "overrides": [
            [o.pattern, None if (q := o.quantization) is None else [q.bits, q.group_size, q.mode]]
            for o in variant.overrides
        ],
        "toolchain": toolchain or None,
    }


ROUNDING = 5  # of what builder.engine.rounding makes. Another number makes every calibrated variant again
EXPERTS = 1  # of how it multiplies by experts: for bases with experts only
_IN_WEIGHTS = {"fp8"}  # the repairs that change weights; the others change config.json


def _repaired(base: BaseFacts, kinds: Set[str]) -> dict[str, object]:
    """What is done otherwise than by mlx-lm. A base that needs no repair has the keys that it always had."""
    found = sorted(kinds & base.structure.repairs.keys())
    return {"repairs": found} if found else {}


def _cut(base: BaseFacts, block: str) -> dict[str, object]:
    """What is left out of a block. A block that keeps everything has the key that it has in any target."""
    digest = base.pruned.digest(block) if base.pruned else None
    return {"experts_digest": digest} if digest else {}


def target_key(made: Sequence[object], config: Key, base: BaseIdentity) -> Key:
    copied = [[entry.name, entry.blob.digest] for entry in base.aux]
    return named_key("target/3", {"made": made, "config": config, "copied": copied})


def measured_key(made: Sequence[object], config: Key, base: BaseIdentity) -> Key:
    return named_key("measured/1", {"made": made, "config": config, "prompts": base.prompts})


def whole_keys(target: Target, base: BaseFacts, slices: Mapping[str, Key], toolchain: str) -> dict[str, Key]:
    """Block -> the key of the same block with all experts, for the blocks that lose some."""
    cut = base.pruned
    if cut is None:
        return {}
    whole = replace(base, structure=cut.whole, pruned=None)
    layout = layout_of(target, whole)
    return {
        b.block: named_key("block/2", block_parts(whole, b, slices.get(b.block), layout.dtype, toolchain))
        for b in layout.blocks
        if b.block in cut.kept
    }
