"""A variant that is a GGUF: each block of another target, unquantized or exact, becomes a file of it. Pure.

GGUF block key = H(the block's key in that target, the type, the names and types of its tensors,
                   the matrix key for K-quants)
GGUF head key  = H(config.json, how text becomes tokens, the type, the tensors of all blocks)
matrix key     = H(the base's weights, the adapter's slices, the dtype, the text and how it becomes tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from builder.gguf import imatrix, layout, splits
from builder.gguf.layout import Made
from builder.gguf.mixes import MIXES
from builder.gguf.settings import Unwritable
from builder.keys import Key, make_key, named_key
from builder.plan.parts import measured_base, measured_key, measured_text, target_key
from builder.plan.quantization import PlanError
from builder.plan.types import Action, GgufFile, TargetPlan, Unresolved
from builder.sources.facts import Calibration
from builder.spec.quantizers import GgufKind
from builder.spec.types import Target
from builder.weights.structure import FLOATING

WRITER = 2  # change it when the same tensors give other bytes
QUANTIZER = 1  # of K-quants: change it when llama.cpp makes other bytes of the same values
SUMS = 1  # of importance matrices: change it when the same text gives other sums
SCORER = "llama.cpp/1"  # change it when the same file and questions give other figures


def as_gguf(
    target: Target, source: TargetPlan | Unresolved, text: Calibration | None = None
) -> TargetPlan | Unresolved:
    """The plan of a GGUF whose blocks are made of the blocks of `source`.

    `source` is unquantized, or for an exact GGUF the target with the very same weights. `text`: what an
    importance matrix is made of. Raises PlanError.
    """
    if isinstance(source, Unresolved):
        return Unresolved(target, source.reason, source.error, source.short)
    kind = cast(GgufKind, target.variant.gguf)
    made = _made(target, source)
    importance = importance_key(target, source, text) if text is not None else None
    count = len(source.actions) + 1
    actions = tuple(
        _block(kind.type, action, made[action.block], importance, number, count)
        for number, action in enumerate(source.actions, start=1)
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
    keyed = [[name, head], *([action.file, action.key] for action in actions)]
    words = {"calibration_digest": text.digest, "calibration_format": text.format} if text else {}
    of = f"{target.model.name}_{kind.of}" if kind.of else None
    return replace(
        source,
        target=target,
        key=target_key(keyed, source.config, identity),
        quantization={},
        actions=actions,
        skipped=(),
        idle=(),
        inputs={**source.inputs, **words},
        measured=measured_key([*keyed, SCORER], source.config, identity),
        calibration=text.digest if text else None,
        gguf=GgufFile(head, name, of, importance),
    )


def importance_key(target: Target, source: TargetPlan, text: Calibration) -> Key:
    """Of an importance matrix: everything that the activations depend on, and how they are written."""
    base = source.base
    return named_key(
        "imatrix/1",
        {
            "version": [SUMS, imatrix.FORMAT],
            **measured_base(base, source.adapter),
            "dtype": source.dtype or base.structure.default_dtype,
            **measured_text(target.variant.text, base, text),
        },
    )


def _made(target: Target, source: TargetPlan) -> dict[str, tuple[Made, ...]]:
    kind = cast(GgufKind, target.variant.gguf)
    try:
        return layout.made_of(
            source.base.structure.model_type,
            kind.type,
            {action.block: action.tensors for action in source.actions},
            source.quantization,
            weighed=kind.weighed is not None,
        )
    except Unwritable as error:
        raise PlanError(
            table=f"model.{target.model.name}",
            what=f"variant {target.variant.name} cannot be made: {error}.",
            hint="docs/publish.md lists what can be a GGUF.",
        ) from error


def _block(
    kind: str, action: Action, made: Sequence[Made], importance: Key | None, number: int, count: int
) -> Action:
    specs = layout.specs(made)
    parts: dict[str, object] = {
        "block": action.key,
        "gguf": kind,
        "number": number,
        "tensors_digest": make_key("tensors/1", [[t.name, t.dtype, t.shape] for t in specs]),
        "writer": WRITER,
    }
    if kind in MIXES and not {spec.dtype for spec in specs} <= FLOATING:
        parts |= {"quantizer": QUANTIZER, "importance": importance}
    key: Key = named_key("gguf-block/1", parts)
    return Action(
        key, action.block, splits.file_name(number, count), specs, splits.encoded_size(specs, number)
    )
