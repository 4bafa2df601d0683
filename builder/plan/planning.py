"""Plans what each target is made of. Pure: declarations and fingerprints in, keys and sizes out.

All keys are known before anything is built:

  block key    = H(base weights, block, this block's slice of the adapter, dtype, its tensors,
                   their quantization)
  rounded key  = H(the same, the calibration text and how it becomes tokens, all blocks before it)
  learned key  = H(the source's block keys, those of the start, the calibration text and how it becomes
                   tokens, settings of the method)
  config key   = H(config.json of the base, generation_config.json, dtype, settings,
                   quantization of each path)
  target key   = H(its block keys or its learned key, its config key, the files copied from the base)
  measured key = H(the same, but of the copied files only those that make prompts)

Every key is made of named parts, which the manifest keeps: so `why` can name whatever changed. No key holds a
name that a person gave.

A target is Unresolved if its base or adapter has not been fingerprinted yet, if something must be measured
first, or if its declaration cannot be met. It says why, and does not affect other targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from builder.keys import named_key
from builder.plan import shares
from builder.plan.experts import WAITS, pruned, routing_key
from builder.plan.gguf import as_gguf
from builder.plan.goals import (
    allocation_key,
    measured_with,
    sensitivity_key,
    share_key,
    uniform,
    with_allocation,
    with_bits,
    with_share,
)
from builder.plan.inputs import adapter_in_words, in_words
from builder.plan.layout import Layout, layout_of
from builder.plan.learned import plan_learned
from builder.plan.parts import (
    block_parts,
    config_parts,
    layers_of,
    measured_key,
    rounded_parts,
    target_key,
    whole_keys,
)
from builder.plan.quantization import PlanError, refuse_packed
from builder.plan.types import Action, Plan, Sources, TargetPlan, Unresolved
from builder.sources.facts import AdapterFacts, BaseFacts, Calibration, Unknown
from builder.spec.types import Spec, Target


def make_plan(spec: Spec, sources: Sources) -> Plan:
    """The plan of every declared target.

    A target that the sources cannot provide is Unresolved, with the PlanError inside. No error is raised.
    """
    memo: dict[tuple[str, str], Layout] = {}
    targets: dict[str, TargetPlan | Unresolved] = {}

    def plain(target: Target) -> TargetPlan | Unresolved:
        if target.variant.experts is not None and target.variant.experts.choices:
            return _plan_share(target, sources, plain)
        facts = facts_of(target, sources)
        if isinstance(facts, Unresolved):
            return facts
        if target.variant.goal is not None:
            return _plan_goal(target, facts, sources)
        if facts.base.pruned is not None:
            return plan_alone(target, facts, sources.toolchain)
        where = (target.model.base, target.variant.name)
        if where not in memo:
            memo[where] = layout_of(target, facts.base)
        made = _plan_target(target, facts, memo[where], sources.toolchain)
        return as_gguf(target, made, facts.text) if target.variant.gguf else made

    def whole(
        target: Target, source: TargetPlan | Unresolved, start: TargetPlan | Unresolved | None
    ) -> TargetPlan | Unresolved:
        if isinstance(source, TargetPlan):
            refuse_packed(target, source.base)
        return plan_learned(target, source, sources.calibrations[target.variant.name], start)

    for target in spec.targets:
        if not target.variant.made_from:
            targets[target.name] = _or_refused(target, partial(plain, target))
    for target in spec.targets:
        if (gguf := target.variant.gguf) is not None and gguf.of is not None:
            source = targets[f"{target.model.name}_{gguf.of}"]
            targets[target.name] = _or_refused(target, partial(as_gguf, target, source))
        if (learned := target.variant.learned) is not None:
            source = targets[f"{target.model.name}_{learned.source}"]
            start = targets[f"{target.model.name}_{learned.start}"] if learned.start else None
            targets[target.name] = _or_refused(target, partial(whole, target, source, start))
    return Plan({target.name: targets[target.name] for target in spec.targets})


@dataclass(frozen=True)
class Facts:
    """What is known of everything that one target is made from."""

    base: BaseFacts
    adapter: AdapterFacts | None
    text: Calibration | None


def facts_of(target: Target, sources: Sources) -> Facts | Unresolved:
    """What a target is made from, or why that is not known. Raises PlanError for a base that is packed, and
    for experts that cannot be left out.
    """
    facts = whole_facts(target, sources)
    return facts if isinstance(facts, Unresolved) else _without_experts(target, facts, sources)


def whole_facts(target: Target, sources: Sources) -> Facts | Unresolved:
    """What a target is made from, with all experts of its base."""
    base = sources.bases[target.model.base]
    adapter = sources.adapters[target.model.adapter] if target.model.adapter else None
    if isinstance(base, Unknown):
        return Unresolved(target, f"base:{target.model.base} {base.reason}", base.error)
    if isinstance(adapter, Unknown):
        reason = f"adapter:{target.model.adapter} {adapter.reason}"
        return Unresolved(target, reason, adapter.error, adapter.short)
    if adapter is not None and adapter.tokenizer is not None:
        base = replace(base, identity=adapter.tokenizer.on(base.identity))
    refuse_packed(target, base)
    text = sources.calibrations[target.variant.name] if target.variant.text else None
    if isinstance(text, Unknown):
        return Unresolved(target, text.reason, text.error)
    return Facts(base, adapter, text)


def _without_experts(target: Target, facts: Facts, sources: Sources) -> Facts | Unresolved:
    """The facts of a target that leaves experts out. Raises PlanError."""
    if target.variant.experts is None or target.variant.experts.choices:
        return facts
    assert facts.text is not None
    if facts.base.structure.quantized:
        raise PlanError(
            table=f"variant.{target.variant.name}",
            what=f'experts cannot be left out of base "{target.model.base}": it is quantized already.',
            hint=f"Set `dequantize = true` in [base.{target.model.base}].",
        )
    key = routing_key(target, facts.base, facts.adapter, facts.text, sources.toolchain)
    found = sources.routings(key)
    if found is None:
        return Unresolved(target, WAITS, short="experts not measured")
    return replace(facts, base=pruned(target, facts.base, found, key))


def plan_alone(target: Target, facts: Facts, toolchain: str) -> TargetPlan:
    """The plan of one target whose bits are known. Raises PlanError."""
    return _plan_target(target, facts, layout_of(target, facts.base), toolchain)


def _plan_goal(target: Target, facts: Facts, sources: Sources) -> TargetPlan | Unresolved:
    """A target that asks for a size: planned like any other once its bits are chosen."""
    assert facts.text is not None
    assert target.variant.goal is not None
    questions, waits = None, "the bits of its weights are not chosen yet"
    if target.variant.goal.smallest:
        asked = sources.questions.get(target.model.name, Unknown("its questions are not known"))
        if isinstance(asked, Unknown):
            return Unresolved(target, asked.reason, asked.error)
        questions, waits = asked, "its size is not searched yet"
    else:
        uniform(target, facts.base)  # raises PlanError for a size that nothing meets
    key = allocation_key(target, facts.base, facts.adapter, facts.text, sources.toolchain, questions)
    found = sources.allocations(key)
    if found is None:
        return Unresolved(target, waits)
    made = with_allocation(target, found)
    plain = measured_with(with_bits(target, found.common, {}))
    cost = sensitivity_key(plain, facts.base, facts.adapter, facts.text, sources.toolchain)
    return replace(plan_alone(made, facts, sources.toolchain), chosen=(key, cost))


def _plan_share(
    target: Target, sources: Sources, plain: Callable[[Target], TargetPlan | Unresolved]
) -> TargetPlan | Unresolved:
    """A target that chooses its share of experts: planned like any other once that is chosen."""
    facts = whole_facts(target, sources)
    if isinstance(facts, Unresolved):
        return facts
    asked = sources.questions.get(target.model.name, Unknown("its questions are not known"))
    if isinstance(asked, Unknown):
        return Unresolved(target, asked.reason, asked.error)
    assert facts.text is not None
    key = share_key(target, facts.base, facts.adapter, facts.text, sources.toolchain, asked)
    found = sources.shares(key)
    if found is None:
        return Unresolved(target, shares.WAITS, short="experts not searched")
    plan = plain(with_share(target, found.share))
    return replace(plan, chosen=(*plan.chosen, key)) if isinstance(plan, TargetPlan) else plan


def _or_refused(target: Target, planned: Callable[[], TargetPlan | Unresolved]) -> TargetPlan | Unresolved:
    try:
        return planned()
    except PlanError as error:
        return Unresolved(target, error.message.rstrip("."), error)


def _plan_target(target: Target, facts: Facts, layout: Layout, toolchain: str) -> TargetPlan:
    base, adapter, text = facts.base, facts.adapter, facts.text
    slices = adapter.slices if adapter else {}
    if stray := sorted(set(slices) - set(base.structure.blocks)):
        raise PlanError(
            table=f"adapter.{target.model.adapter}",
            what=f'changes "{stray[0]}", which base "{target.model.base}" does not have.',
            hint="Was it trained on another model? Correct `base` or `path` in artifacts.toml.",
        )
    parts = {
        b.block: block_parts(base, b, slices.get(b.block), layout.dtype, toolchain) for b in layout.blocks
    }
    for_text = text is not None and target.variant.rounds_for_text
    if text is not None and for_text:
        parts = rounded_parts(parts, layers_of(layout.blocks), target.variant, base, text)
    kind = "rounded/1" if for_text else "block/2"
    whole = {} if for_text else whole_keys(target, facts.base, slices, toolchain)
    actions = tuple(
        Action(named_key(kind, parts[b.block]), b.block, b.file, b.tensors, b.size, whole.get(b.block))
        for b in layout.blocks
    )
    settings = config_parts(target.variant, base, layout, toolchain)
    config = named_key("config/3", settings)
    blocks = [[action.file, action.key] for action in actions]
    return TargetPlan(
        target,
        target_key(blocks, config, base.identity),
        base,
        adapter,
        layout.dtype,
        layout.quantization,
        actions,
        config,
        layout.skipped,
        {**in_words([*parts.values(), settings]), **adapter_in_words(adapter)},
        measured_key(blocks, config, base.identity),
        text.digest if text else None,
        idle=layout.idle,
    )
