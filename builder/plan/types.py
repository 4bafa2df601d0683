"""The types of a plan: what each target is made of. `builder.plan.planning` makes the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from builder.console.words import listed
from builder.errors import BuildError
from builder.keys import Digest, Key
from builder.plan.allocation import Allocation
from builder.plan.shares import Share
from builder.sources.facts import AdapterFacts, BaseFacts, Calibration, Unknown
from builder.spec.types import Quantization, Target
from builder.weights import overrides
from builder.weights.experts import Routing
from builder.weights.structure import TensorSpec

CONFIG = "config.json"
GENERATION = "generation_config.json"  # mlx_lm.utils.load_config takes eos_token_id from it


@dataclass(frozen=True)
class Sources:
    """What planning knows about the sources. The mappings go from the declared name to the facts."""

    bases: Mapping[str, BaseFacts | Unknown]
    adapters: Mapping[str, AdapterFacts | Unknown]
    toolchain: str = ""  # part of every key only with [build] strict_toolchain
    calibrations: Mapping[str, Calibration | Unknown] = field(default_factory=dict)  # by variant
    allocations: Callable[[Key], Allocation | None] = lambda _: None  # what was chosen, by its key
    questions: Mapping[str, Key | Unknown] = field(default_factory=dict)  # of models that search a size
    shares: Callable[[Key], Share | None] = lambda _: None  # the share of experts that was chosen, by its key
    routings: Callable[[Key], Routing | None] = lambda _: None  # what was measured of experts, by its key


@dataclass(frozen=True)
class Action:
    """One block of one variant of one model: inputs -> one blob of exactly `size` bytes."""

    key: Key
    block: str
    file: str
    tensors: tuple[TensorSpec, ...]
    size: int
    whole: Key | None = None  # the block that this one is cut out of, where experts are left out


@dataclass(frozen=True)
class GgufFile:
    """What a target that is a GGUF has beside its blocks: `head` is the key of its first file, `file`.

    `of` is the target whose blocks it holds. None: its blocks are made of base and adapter. `importance` is
    the key of the importance matrix that it is quantized with.
    """

    head: Key
    file: str
    of: str | None
    importance: Key | None = None


@dataclass(frozen=True)
class Start:
    """The target whose codes a learned target keeps, and the bytes of its shards."""

    name: str
    size: int


@dataclass(frozen=True)
class TargetPlan:
    """Everything a target is made of.

    `key` is what the target is, whatever it is called. `inputs` says in words what is in its keys. `measured`
    is what can change a figure that is measured of it. `learned`: the key of a whole-model step, `needs`: the
    target that must be on disk for that step, and `start` another one, whose codes stay. `chosen`: the keys
    under which its bits were chosen. `skipped`: quantizable paths whose width the group does not divide.
    `idle`: overrides that match nothing.
    """

    target: Target
    key: Key
    base: BaseFacts
    adapter: AdapterFacts | None
    dtype: str | None
    quantization: Mapping[str, Quantization]
    actions: tuple[Action, ...]
    config: Key
    skipped: tuple[str, ...]
    inputs: Mapping[str, str]
    measured: Key
    calibration: Digest | None = None
    learned: Key | None = None
    needs: str | None = None
    idle: tuple[overrides.Idle, ...] = ()
    chosen: tuple[Key, ...] = ()
    gguf: GgufFile | None = None
    start: Start | None = None

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def reads(self) -> tuple[str, ...]:
        """The targets that must be on disk for its whole-model step."""
        return (*([self.needs] if self.needs else []), *([self.start.name] if self.start else []))

    @property
    def measurements(self) -> tuple[Key, ...]:
        """The keys of what was measured to decide what the target is made of, or how it is quantized."""
        importance = [self.gguf.importance] if self.gguf and self.gguf.importance else []
        return (*self.chosen, *([self.base.pruned.measured] if self.base.pruned else []), *importance)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The keys of everything that is made for it: blocks or a whole-model step, heads, config.json."""
        step = (self.learned,) if self.learned else ()
        head = (self.gguf.head,) if self.gguf else ()
        return (*(action.key for action in self.actions), *step, *head, self.config)

    @cached_property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(action.size for action in self.actions)

    @property
    def whole_size(self) -> int | None:
        """Bytes of the shards and the copied files. config.json and the index add a few kB.

        None for a learned target, whose size is not known before it is made.
        """
        return None if self.needs else self.size + sum(entry.blob.size for entry in self.base.aux)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Parts of the declaration that have no effect, and what is put right in the base, one line each."""
        found = [f"{self.name}: {override.text}" for override in self.idle]
        found += [f"base {self.target.model.base}: {what}" for what in self.base.structure.repairs.values()]
        if remark := self._tokenizer_remark:
            found.append(remark)
        if self.skipped:
            group = self.target.variant.common_group
            found.insert(
                0,
                f"{self.name}: stays unquantized, because groups of {group} do not divide its columns:"
                f" {listed(self.skipped)}",
            )
        return tuple(found)

    @property
    def _tokenizer_remark(self) -> str | None:
        """Whose tokenizer the target gets, where training saved another one beside the adapter."""
        own = self.adapter.tokenizer if self.adapter else None
        if own is None or not own.differs or (own.settled and not own.used):
            return None
        what = f"adapter {self.target.model.adapter} brings {', '.join(own.differs)}"
        if own.used:
            return f"{what}: its tokenizer and chat template are used"
        return (
            f"{what}: the tokenizer and chat template of the base are used."
            f' `tokenizer = "adapter"` in [adapter.{self.target.model.adapter}] uses the adapter\'s'
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over the number of parameters (mlx_lm.utils.compute_bits_per_weight).

        Rounded to four digits, as in manifests, so that every reader rounds the same value.
        """
        nbytes = sum(tensor.nbytes for action in self.actions for tensor in action.tensors)
        return round(8 * nbytes / self.base.structure.parameter_count, 4)


@dataclass(frozen=True)
class Unresolved:
    """A target that cannot be planned yet. `reason` is one clause.

    With `error`, the target can never be planned with these sources and this declaration. Building the target
    raises `error`. `short` is the reason in two or three words, where there are better ones than the usual.
    """

    target: Target
    reason: str
    error: BuildError | None = None
    short: str = ""

    @property
    def name(self) -> str:
        return self.target.name


@dataclass(frozen=True)
class Plan:
    """All declared targets by name, in file order."""

    targets: Mapping[str, TargetPlan | Unresolved]

    def resolved(self) -> tuple[TargetPlan, ...]:
        """The targets that could be planned."""
        return tuple(t for t in self.targets.values() if isinstance(t, TargetPlan))


def nominal_size(plan: TargetPlan) -> int:
    """The bytes of a target's shards, to sort targets before they are built.

    Exact, except for a learned target that rounds weights itself. That counts as if every parameter were
    quantized to the variant's bits with a 16-bit scale and a 16-bit bias for each group.
    """
    how = plan.target.variant.quantization
    if plan.start is not None:
        return plan.start.size
    if plan.needs is None or how is None:
        return plan.size
    return int(plan.base.structure.parameter_count * (how.bits + 32 / how.group_size) / 8)
