"""A variant that is a GGUF: each block of another target, unquantized or exact, becomes a file of it. Pure.

GGUF block key = H(the block's key in that target, the type, the names and types of its tensors)
GGUF head key  = H(config.json, how text becomes tokens, the type, the tensors of all blocks)
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from builder.gguf import layout, splits
from builder.gguf.settings import Unwritable
from builder.keys import Key, make_key, named_key
from builder.plan.parts import measured_key, target_key
from builder.plan.quantization import PlanError
from builder.plan.types import Action, GgufFile, TargetPlan, Unresolved
from builder.spec.quantizers import GgufKind
from builder.spec.types import Target

WRITER = 2  # change it when the same tensors give other bytes
SCORER = "llama.cpp/1"  # change it when the same file and questions give other figures


def as_gguf(target: Target, source: TargetPlan | Unresolved) -> TargetPlan | Unresolved:
    """The plan of a GGUF whose blocks are made of the blocks of `source`.

    `source` is unquantized, or for an exact GGUF the target with the very same weights. Raises PlanError.
    """
    if isinstance(source, Unresolved):
        return Unresolved(target, source.reason, source.error, source.short)
    kind = cast(GgufKind, target.variant.gguf)
    count = len(source.actions) + 1
    actions = tuple(
        _block(target, source, action, number, count) for number, action in enumerate(source.actions, start=1)
    )
    identity = source.base.identity
    tensors = [[t.name, t.dtype, t.shape] for action in actions for t in action.tensors]
    head_parts: dict[str, object] = {
        "config": source.config,
        "vocabulary_digest": identity.vocabulary,
        "prompts_digest": identity.prompts,
        "gguf": kind.type,
        "tensors_digest": make_key("tensors/1", tensors),
        "writer": WRITER,
    }
    head = named_key("gguf-head/1", head_parts)
    name = splits.file_name(0, count)
    made = [[name, head], *([action.file, action.key] for action in actions)]
    return replace(
        source,
        target=target,
        key=target_key(made, source.config, identity),
        quantization={},
        actions=actions,
        skipped=(),
        idle=(),
        measured=measured_key([*made, SCORER], source.config, identity),
        gguf=GgufFile(head, name, f"{target.model.name}_{kind.of}" if kind.of else None),
    )


def _block(target: Target, source: TargetPlan, action: Action, number: int, count: int) -> Action:
    kind = cast(GgufKind, target.variant.gguf)
    try:
        made = layout.made_of(
            source.base.structure.model_type, kind.type, action.tensors, source.quantization
        )
    except Unwritable as error:
        raise PlanError(
            table=f"model.{target.model.name}",
            what=f"variant {target.variant.name} cannot be made: {error}.",
            hint="docs/publish.md lists what can be a GGUF.",
        ) from error
    specs = layout.specs(made)
    parts: dict[str, object] = {
        "block": action.key,
        "gguf": kind.type,
        "number": number,
        "tensors_digest": make_key("tensors/1", [[t.name, t.dtype, t.shape] for t in specs]),
        "writer": WRITER,
    }
    key: Key = named_key("gguf-block/1", parts)
    return Action(
        key, action.block, splits.file_name(number, count), specs, splits.encoded_size(specs, number)
    )
