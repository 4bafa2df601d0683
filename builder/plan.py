"""What each target is made of. Pure: declarations and fingerprints in, keys and sizes out.

All keys are known before anything is built:

  block key  = H(base weights, block, this block's slice of the adapter, dtype, quantization of its paths)
  config key = H(base weights, dtype, settings of the variant, generation_config.json if there is one)
  target key = H(name, its block keys, its config key, the files copied from the base)

A target whose base or adapter has not been fingerprinted yet, or whose declaration cannot be met, is
Unresolved: it says why, and leaves all others as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial

from builder import overrides
from builder.errors import BuildError
from builder.keys import Digest, Key, make_key
from builder.learnable import refusal
from builder.problems import listed
from builder.record import FileEntry
from builder.resolve import PlanError, resolve
from builder.shards import encoded_size
from builder.spec import Quantization, Spec, Target, Variant
from builder.structure import Structure, TensorSpec, block_of, shard_tensors

CONFIG = "config.json"
GENERATION = "generation_config.json"  # mlx_lm.utils.load_config takes eos_token_id from it


@dataclass(frozen=True)
class BaseFacts:
    """A fingerprinted base: digest of its weights and config, its structure, the files copied as they are."""

    weights: Digest
    structure: Structure
    aux: tuple[FileEntry, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """A fingerprinted adapter: its own digest, and the digest of each block's slice of it."""

    digest: Digest
    slices: Mapping[str, Key]
    paths: frozenset[str]


@dataclass(frozen=True)
class Unknown:
    """A source that cannot be used for planning yet, and why (one clause).

    `error`: it never can, as it is.
    """

    reason: str
    error: BuildError | None = None


@dataclass(frozen=True)
class Sources:
    bases: Mapping[str, BaseFacts | Unknown]
    adapters: Mapping[str, AdapterFacts | Unknown]
    toolchain: str = ""  # part of every key only with [build] strict_toolchain
    calibrations: Mapping[str, Digest | Unknown] = field(default_factory=dict)  # by variant


@dataclass(frozen=True)
class Action:
    """One block of one variant of one model: inputs -> one blob of exactly `size` bytes."""

    key: Key
    block: str
    file: str
    tensors: tuple[TensorSpec, ...]
    size: int
    adapted: bool


@dataclass(frozen=True)
class TargetPlan:
    """Everything a target is made of. `skipped`: quantizable paths whose width the group does not divide,
    `idle`: overrides that match nothing."""

    target: Target
    key: Key
    base: BaseFacts
    adapter: AdapterFacts | None
    dtype: str | None
    quantization: Mapping[str, Quantization]
    actions: tuple[Action, ...]
    config: Key
    skipped: tuple[str, ...]
    calibration: Digest | None = None
    needs: str | None = None  # a learned target: the target that must be on disk to make it, whole
    idle: tuple[overrides.Idle, ...] = ()

    @property
    def name(self) -> str:
        return self.target.name

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        return (*(action.key for action in self.actions), self.config)

    @cached_property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(action.size for action in self.actions)

    @property
    def whole_size(self) -> int | None:
        """Bytes of the shards and the copied files; config.json and the index are some kB more.

        None for a learned target: only its making says.
        """
        return None if self.needs else self.size + sum(entry.blob.size for entry in self.base.aux)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What its declaration may have meant and did not do, one line each."""
        found = [f"{self.name}: {override.text}" for override in self.idle]
        if self.skipped:
            group = self.target.variant.common_group
            found.insert(
                0,
                f"{self.name}: stays unquantized, because groups of {group} do not divide its columns:"
                f" {listed(self.skipped)}",
            )
        return tuple(found)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over the number of parameters (mlx_lm.utils.compute_bits_per_weight).

        Four digits, as manifests keep them: whoever shows fewer rounds the same value.
        """
        nbytes = sum(tensor.nbytes for action in self.actions for tensor in action.tensors)
        return round(8 * nbytes / self.base.structure.parameter_count, 4)


@dataclass(frozen=True)
class Unresolved:
    """A target that cannot be planned yet. `reason` is one clause.

    `error`: it never can, as its sources and its declaration are; whoever builds it raises that.
    """

    target: Target
    reason: str
    error: BuildError | None = None

    @property
    def name(self) -> str:
        return self.target.name


@dataclass(frozen=True)
class Plan:
    targets: Mapping[str, TargetPlan | Unresolved]

    def resolved(self) -> tuple[TargetPlan, ...]:
        return tuple(t for t in self.targets.values() if isinstance(t, TargetPlan))


def make_plan(spec: Spec, sources: Sources) -> Plan:
    """A declaration that cannot be met by what the sources hold leaves its own targets Unresolved."""
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
    """Raises PlanError where mlx-lm would round an adapter away, or keep the old bits, and say nothing."""
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
    """A whole-model step: one key from the blocks of its source, its text, its seed and parameters.

    Raises PlanError for what the method cannot do.
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
        "learned/2" if learned.method == "gptq" else "learned/1",  # gptq/1 overflowed in float16
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


def nominal_size(plan: TargetPlan) -> int:
    """About the bytes of a target's shards, to put targets in order before they are built.

    Exact but for a learned target, which counts as if its bits, a scale and a bias for each group were all.
    """
    how = plan.target.variant.quantization
    if plan.needs is None or how is None:
        return plan.size
    return int(plan.base.structure.parameter_count * (how.bits + 32 / how.group_size) / 8)


@dataclass(frozen=True)
class _BlockLayout:
    block: str
    file: str
    tensors: tuple[TensorSpec, ...]
    size: int
    quantization: Key


@dataclass(frozen=True)
class _Layout:
    """What a variant makes of a base, whatever the adapter."""

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
    """The shard names of mlx_lm.utils.save_model: counted from 1."""
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
            b.block in slices,
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
    """The key of config.json. What mlx-lm merges into it is a part only where there is something to merge."""
    merged = [entry.blob.digest for entry in base.aux if entry.name == GENERATION]
    domain = "config/2" if merged else "config/1"
    return make_key(domain, base.weights, dtype, _settings(variant), *merged, *extra)


def _settings(variant: Variant) -> object:
    """Everything of a variant that reaches config.json, as encodable values."""
    how = variant.quantization
    return {
        "quantization": None if how is None else [how.bits, how.group_size, how.mode],
        "recipe": variant.recipe and [variant.recipe, variant.group_size],
        "overrides": [
            [o.pattern, None if (q := o.quantization) is None else [q.bits, q.group_size, q.mode]]
            for o in variant.overrides
        ],
    }
