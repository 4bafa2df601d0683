"""Plans what each target is made of. Pure: declarations and fingerprints in, keys and sizes out.

All keys are known before anything is built:

  block key  = H(base weights, block, this block's slice of the adapter, dtype, quantization of its paths)
  config key = H(base weights, dtype, settings of the variant, generation_config.json if there is one)
  target key = H(name, its block keys, its config key, the files copied from the base)

A target is Unresolved if its base or adapter has not been fingerprinted yet, or if its declaration cannot be
met. An Unresolved target says why, and does not affect other targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from builder.keys import Digest, Key, make_key
from builder.plan.methods import refusal
from builder.plan.quantization import PlanError, resolve
from builder.plan.types import GENERATION, Action, Plan, Sources, TargetPlan, Unresolved
from builder.sources.facts import AdapterFacts, BaseFacts, Unknown
from builder.spec.types import Quantization, Spec, Target, Variant
from builder.weights import overrides
from builder.weights.shards import encoded_size
from builder.weights.structure import TensorSpec, block_of, shard_tensors


def make_plan(spec: Spec, sources: Sources) -> Plan:
    """The plan of every declared target.

    A target that the sources cannot provide is Unresolved, with the PlanError inside. No error is raised.
    """
    memo: dict[tuple[str, str], _Layout] = {}
    targets: dict[str, TargetPlan | Unresolved] = {}

    def plain(target: Target) -> TargetPlan | Unresolved:
        base = sources.bases[target.model.base]
        adapter = sources.adapters[target.model.adapter] if target.model.adapter else None
        if isinstance(base, Unknown):
            return Unresolved(target, f"base:{target.model.base} {base.reason}", base.error)
        if isinstance(adapter, Unknown):
            return Unresolved(target, f"adapter:{target.model.adapter} {adapter.reason}", adapter.error)
        _refuse_packed(target, base)
        where = (target.model.base, target.variant.name)
        if where not in memo:
            memo[where] = _layout(target, base)
        return _plan_target(target, base, adapter, memo[where], sources.toolchain)

    def whole(target: Target, source: TargetPlan | Unresolved) -> TargetPlan | Unresolved:
        if isinstance(source, TargetPlan):
            _refuse_packed(target, source.base)
        return plan_learned(target, source, sources.calibrations[target.variant.name])

    for target in spec.targets:
        if target.variant.learned is None:
            targets[target.name] = _or_refused(target, partial(plain, target))
    for target in spec.targets:
        if (learned := target.variant.learned) is not None:
            source = targets[f"{target.model.name}_{learned.source}"]
            targets[target.name] = _or_refused(target, partial(whole, target, source))
    return Plan({target.name: targets[target.name] for target in spec.targets})


def _or_refused(target: Target, planned: Callable[[], TargetPlan | Unresolved]) -> TargetPlan | Unresolved:
    try:
        return planned()
    except PlanError as error:
        return Unresolved(target, error.message.rstrip("."), error)


def _refuse_packed(target: Target, base: BaseFacts) -> None:
    """Raises PlanError for a quantized base: mlx-lm would silently lose the adapter or keep the old bits."""
    model = target.model
    if not base.structure.quantized:
        return
    if model.adapter is not None:
        what = f'adapter "{model.adapter}" would be rounded away: base "{model.base}" is quantized already.'
    elif target.variant.is_quantized:
        variant = target.variant.name
        what = f'variant "{variant}" would keep the old bits: base "{model.base}" is quantized already.'
    else:
        return
    raise PlanError(
        table=f"model.{model.name}",
        what=what,
        hint=f"Set `dequantize = true` in [base.{model.base}], or take the original weights as the base.",
    )


def plan_learned(
    target: Target, source: TargetPlan | Unresolved, calibration: Digest | Unknown
) -> TargetPlan | Unresolved:
    """The plan of a whole-model step. Its key is made from the blocks of `source`, the text and the settings.

    `source` is the unquantized target that the step reads. Raises PlanError for what the method cannot do.
    """
    if isinstance(source, Unresolved):
        return Unresolved(target, source.reason, source.error)
    if isinstance(calibration, Unknown):
        return Unresolved(target, calibration.reason, calibration.error)
    variant, learned, how = target.variant, target.variant.learned, target.variant.quantization
    assert learned is not None
    assert how is not None
    if refused := refusal(learned, how, source.base.structure):
        raise PlanError(table=f"variant.{variant.name}", what=refused[0], hint=refused[1])
    settings = {k: v for k, v in asdict(learned).items() if k not in ("calibration", "source")}
    key = make_key(
        "learned/2" if learned.method == "gptq" else "learned/1",  # gptq overflowed in float16 before
        target.name,
        [[action.file, action.key] for action in source.actions],
        source.config,
        [[entry.name, entry.blob.digest] for entry in source.base.aux],
        settings,
        [how.bits, how.group_size],
        calibration,
    )
    return TargetPlan(
        target,
        key,
        source.base,
        source.adapter,
        source.dtype,
        {},
        (),
        source.config,
        (),
        calibration,
        source.name,
    )


@dataclass(frozen=True)
class _BlockLayout:
    block: str
    file: str
    tensors: tuple[TensorSpec, ...]
    size: int
    quantization: Key


@dataclass(frozen=True)
class _Layout:
    """What a variant makes of a base. The adapter does not matter for this."""

    dtype: str | None
    quantization: Mapping[str, Quantization]
    skipped: tuple[str, ...]
    idle: tuple[overrides.Idle, ...]
    blocks: tuple[_BlockLayout, ...]


def _layout(target: Target, base: BaseFacts) -> _Layout:
    structure, variant = base.structure, target.variant
    dtype = variant.dtype or structure.default_dtype
    quantization, skipped = resolve(structure, variant)
    by_block: dict[str, list[object]] = {}
    for path, how in sorted(quantization.items()):
        by_block.setdefault(block_of(f"{path}.weight"), []).append([path, how.bits, how.group_size, how.mode])
    count = len(structure.blocks)
    blocks = []
    for index, (block, parameters) in enumerate(structure.by_block.items(), start=1):
        tensors = shard_tensors(parameters, dtype, quantization)
        quantized = make_key("quantization/1", by_block.get(block, []))
        blocks.append(
            _BlockLayout(block, shard_name(index, count), tensors, encoded_size(tensors), quantized)
        )
    idle = overrides.idle(structure, variant) if variant.is_quantized else ()
    return _Layout(dtype, quantization, skipped, idle, tuple(blocks))


def shard_name(index: int, count: int) -> str:
    """The name of a shard as mlx_lm.utils.save_model chooses it. `index` counts from 1."""
    return f"model-{index:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _plan_target(
    target: Target, base: BaseFacts, adapter: AdapterFacts | None, layout: _Layout, toolchain: str
) -> TargetPlan:
    slices = adapter.slices if adapter else {}
    if stray := sorted(set(slices) - set(base.structure.blocks)):
        raise PlanError(
            table=f"adapter.{target.model.adapter}",
            what=f'changes "{stray[0]}", which base "{target.model.base}" does not have.',
            hint="Was it trained on another model? Correct `base` or `path` in artifacts.toml.",
        )
    extra = [toolchain] if toolchain else []
    actions = tuple(
        Action(
            make_key(
                "block/1", base.weights, b.block, slices.get(b.block), layout.dtype, b.quantization, *extra
            ),
            b.block,
            b.file,
            b.tensors,
            b.size,
        )
        for b in layout.blocks
    )
    config = _config_key(target.variant, base, layout.dtype, extra)
    key = make_key(
        "target/1",
        target.name,
        [[action.file, action.key] for action in actions],
        config,
        [[entry.name, entry.blob.digest] for entry in base.aux],
    )
    return TargetPlan(
        target,
        key,
        base,
        adapter,
        layout.dtype,
        layout.quantization,
        actions,
        config,
        layout.skipped,
        idle=layout.idle,
    )


def _config_key(variant: Variant, base: BaseFacts, dtype: str | None, extra: list[str]) -> Key:
    """The key of config.json. generation_config.json is part of it if the base has one: mlx-lm merges it."""
    merged = [entry.blob.digest for entry in base.aux if entry.name == GENERATION]
    domain = "config/2" if merged else "config/1"
    return make_key(domain, base.weights, dtype, _settings(variant), *merged, *extra)


def _settings(variant: Variant) -> object:
    """Every setting of a variant that reaches config.json, as values that `builder.keys.encode` takes."""
    how = variant.quantization
    return {
        "quantization": None if how is None else [how.bits, how.group_size, how.mode],
        "recipe": variant.recipe and [variant.recipe, variant.group_size],
        "overrides": [
            [o.pattern, None if (q := o.quantization) is None else [q.bits, q.group_size, q.mode]]
            for o in variant.overrides
        ],
    }
