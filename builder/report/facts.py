"""What a report says, as values. Nothing here reads, computes or formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from builder.console.states import Verdict
from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import Difference
from builder.evaluate.line import Ratio
from builder.evaluate.results import Sample
from builder.evaluate.statistics import Figure
from builder.spec.types import Metric
from builder.weights.survival import Survival

Kind = Literal["uniform", "mixed", "learned", "calibrated", "chosen bits", "fewer experts"]


@dataclass(frozen=True)
class ExpertsLeft:
    """How many experts of each layer a target keeps, and by what criterion.

    `tenth`: the KL of the model without a tenth of its experts, on `held` tokens of the text that they were
    measured with. None where that is not known.
    """

    kept: int
    count: int
    criterion: str
    tenth: float | None
    held: int


@dataclass(frozen=True)
class BlockSurvival:
    """How much of the adapter is left in one block of one target."""

    block: str
    survival: Survival


@dataclass(frozen=True)
class Provenance:
    """Where a target came from. `settings` and `toolchain` are the manifest's, as text.

    `created` is an RFC 3339 time, empty for a target that is not built.
    """

    target: str
    key: str
    created: str
    base: str
    base_digest: str
    adapter: str
    adapter_digest: str
    settings: str
    toolchain: str
    machine: str
    measured: Told | None


@dataclass(frozen=True)
class Row:
    """One target that is built, or that was measured from its sources.

    `size` is in bytes. For a target that is not built, `size` is what the target would take. `control_name`
    is the target that quantizes the base without adapter in the same way, and `control` are its figures. A
    figure may meet its requirement, but not with certainty. `doubts` then has the end of its interval that
    does not meet the requirement. `samples` are some answers of the target, by suite. `searched`: the
    target searched its size with one half of the questions, and its figures are of the other half. `kind` is
    None for an unquantized target with all experts.
    """

    target: str
    variant: str
    bits: int | None
    size: int
    bits_per_weight: float
    figures: Mapping[Metric, Figure]
    survival: Survival | None
    blocks: tuple[BlockSurvival, ...]
    verdict: Verdict
    misses: tuple[str, ...]
    doubts: Mapping[Metric, float]
    provenance: Provenance
    control_name: str | None = None
    control: Mapping[Metric, Figure] | None = None
    is_built: bool = True
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    kind: Kind | None = None
    searched: bool = False

    @property
    def levels(self) -> str:
        """How many values a weight in a group can take, as text. "mixed" where bits differ."""
        if self.bits is None:
            return "mixed"
        return str(2**self.bits) if self.bits < 16 else "-"


@dataclass(frozen=True)
class Compared:
    """The comparison of two targets on the questions of one suite, by one figure."""

    metric: Metric
    kind: str
    first: str
    second: str
    difference: Difference


@dataclass(frozen=True)
class Beside:
    """A target beside the line at its bytes."""

    target: str
    ratio: Ratio


@dataclass(frozen=True)
class Frontier:
    """What bytes buy: the targets that the line goes through, from large to small, and others beside it.

    `line` is empty with fewer than two uniform targets that differ only in bits. `beside` has the targets
    between the smallest and the largest of `line`.
    """

    metric: Metric
    line: tuple[str, ...]
    beside: tuple[Beside, ...]


@dataclass(frozen=True)
class Production:
    """What models/production shows: `target`, or None before the first release.

    `is_current` is false when production shows another build of the target than the declared one.
    """

    target: str | None
    is_current: bool


@dataclass(frozen=True)
class Trained:
    """How an adapter was trained. `train` and `valid`: losses by step. `kept`: the step that is the adapter.

    `overlaps`: what the suites share with the training data, one clause each. `loss` is the validation
    loss of the adapter, `fused_loss` that on the unquantized base, where training had a quantized one.
    """

    train: tuple[tuple[int, float], ...]
    valid: tuple[tuple[int, float], ...]
    steps: int
    kept: int
    settings: Mapping[str, str | int | float | bool]
    seconds: float
    overlaps: tuple[str, ...]
    loss: float | None = None
    fused_loss: float | None = None


@dataclass(frozen=True)
class ModelReport:
    """One model: its targets from large to small, and the comparisons of pairs of them.

    `metrics` are in the order of declaration. `required` has operator and value by metric. `absent` are the
    declared targets without a row. `control` is the declared model of the same base without adapter, or None.
    `plain` is the unquantized target of `control`. `kinds`, `unread` (what is wrong with the questions),
    `top_k` and `checks` (how the answers of a generate suite are judged) are by suite. `states` has the kind
    of builder.project.state by declared target. `production` is None for a model that is not released, and
    `frontier` for a model whose KL is not measured. `training` is None where nothing was trained here.
    `seed_of` is the declared model of which this model is one seed. `experts` has the variants that leave
    some out.
    """

    name: str
    base: str
    adapter: str | None
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    kinds: Mapping[str, str]
    required: Mapping[Metric, tuple[str, float]]
    compared: tuple[Compared, ...]
    absent: tuple[str, ...]
    control: str | None
    plain: Row | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    top_k: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    production: Production | None = None
    frontier: Frontier | None = None
    training: Trained | None = None
    seed_of: str | None = None
    experts: Mapping[str, ExpertsLeft] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: its mean, and the smallest and the largest value of one seed."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class SeedsRow:
    """One variant over all seeds: with how many it passes, of how many that are measured. `size` in bytes.

    `spreads` has the figures that are known with every seed.
    """

    variant: str
    size: int
    passed: int
    measured: int
    spreads: Mapping[Metric, Spread]


@dataclass(frozen=True)
class SeedsReport:
    """A model that was declared with several seeds, as one table. `models` are those of the seeds.

    `chosen` is the smallest variant that passes with every seed, or None.
    """

    name: str
    models: tuple[str, ...]
    rows: tuple[SeedsRow, ...]
    chosen: str | None


@dataclass(frozen=True)
class Report:
    """The whole report. `version` is the version of modelkiln."""

    version: str
    models: tuple[ModelReport, ...]
