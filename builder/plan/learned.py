"""Learned targets: a whole model that a method makes of another target, or of two. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from builder.keys import Key, make_key, named_key
from builder.plan.inputs import SETTINGS
from builder.plan.methods import refusal, start_refusal
from builder.plan.parts import measured_key, target_key
from builder.plan.quantization import PlanError
from builder.plan.types import Start, TargetPlan, Unresolved
from builder.sources.facts import Calibration, Unknown
from builder.spec.quantizers import METHOD_SETTINGS
from builder.spec.types import Target

TUNING = 1  # of what builder.engine.tuning makes. Another number tunes again


def plan_learned(
    target: Target,
    source: TargetPlan | Unresolved,
    calibration: Calibration | Unknown,
    start: TargetPlan | Unresolved | None = None,
) -> TargetPlan | Unresolved:
    """A whole-model step: one key from the blocks of what it reads, its text and the settings that its method
    uses.

    `source` is the unquantized target that the step reads, `start` the quantized one whose codes it keeps.
    Raises PlanError for what the method cannot do.
    """
    for read in (source, start):
        if isinstance(read, Unresolved):
            return Unresolved(target, read.reason, read.error, read.short)
    if isinstance(calibration, Unknown):
        return Unresolved(target, calibration.reason, calibration.error)
    assert isinstance(source, TargetPlan)
    if isinstance(start, TargetPlan):
        return _tuned(target, source, start, calibration)
    variant, learned, how = target.variant, target.variant.learned, target.variant.quantization
    assert learned is not None
    assert how is not None
    if refused := refusal(learned, how, source.base.structure):
        raise PlanError(table=f"variant.{variant.name}", what=refused[0], hint=refused[1])
    step: dict[str, object] = {
        "method": learned.method,
        **_settings(target),
        "bits": how.bits,
        "group_size": how.group_size,
        "calibration_digest": calibration.digest,
        "calibration_format": calibration.format,
        "vocabulary_digest": source.base.identity.vocabulary,
    }
    key = named_key("learned/3", {**step, "source_blocks": _blocks(source)})
    return _step(target, source, key, step, calibration)


def _tuned(target: Target, source: TargetPlan, start: TargetPlan, text: Calibration) -> TargetPlan:
    """A step that keeps the codes of `start`. Raises PlanError."""
    if refused := start_refusal(start):
        raise PlanError(table=f"variant.{target.variant.name}", what=refused[0], hint=refused[1])
    templated = text.format == "jsonl"  # a plain text becomes tokens without the chat template
    identity = source.base.identity
    step: dict[str, object] = {
        **_settings(target),
        "tuning": TUNING,
        "start_digest": make_key("start/1", _blocks(start)),
        "calibration_digest": text.digest,
        "calibration_format": text.format,
        "prompts_digest": identity.prompts if templated else None,
        "vocabulary_digest": None if templated else identity.vocabulary,
    }
    key = named_key("tuned/1", {**step, "source_blocks": _blocks(source)})
    return _step(target, source, key, step, text, start)


def _settings(target: Target) -> dict[str, object]:
    """What the method reads of the declaration, without names that a person gave."""
    learned = target.variant.learned
    assert learned is not None
    used = METHOD_SETTINGS[learned.method]
    return {name: value for name, value in asdict(learned).items() if name in used}


def _blocks(plan: TargetPlan) -> Sequence[object]:
    return [[action.file, action.key] for action in plan.actions]


def _step(
    target: Target,
    source: TargetPlan,
    key: Key,
    step: dict[str, object],
    text: Calibration,
    start: TargetPlan | None = None,
) -> TargetPlan:
    """The plan of a target whose step has this key. `step`: what is in the key."""
    base = source.base.identity
    config = named_key("learned-config/1", {"learned": key, "source_config": source.config})
    shown = {name: str(value) for name, value in step.items() if name not in SETTINGS and value is not None}
    if source.target.variant.dtype is not None:  # in the source's key of config.json
        shown["dtype_asked"] = source.target.variant.dtype
    return TargetPlan(
        target,
        target_key([["learned", key]], config, base),
        source.base,
        source.adapter,
        start.dtype if start else source.dtype,
        {},
        (),
        config,
        (),
        {**source.inputs, **shown},
        measured_key([["learned", key]], config, base),
        text.digest,
        key,
        source.name,
        start=Start(start.name, start.size) if start else None,
    )
