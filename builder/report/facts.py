"""What a report says, as values. Nothing here reads, computes or formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from builder.evaluate.circumstances import Told
from builder.evaluate.comparison import Difference
from builder.evaluate.statistics import Figure
from builder.spec.types import Metric
from builder.weights.survival import Survival

Verdict = Literal["passes", "misses", "not measured", "nothing required"]


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

    `control` are the figures of the target that quantizes the base without adapter in the same way, and
    `control_name` is its name. `doubts`: of each figure that meets its requirement, but not with certainty,
    the end of the interval that does not meet it.
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

    @property
    def levels(self) -> str:
        """How many values a weight in a group can take, as text. "mixed" where bits differ."""
        if self.bits is None:
            return "mixed"
        return str(2**self.bits) if self.bits < 16 else "-"


@dataclass(frozen=True)
class Compared:
    """Two targets on the questions of one suite of that kind, by one of its figures."""

    metric: Metric
    kind: str
    first: str
    second: str
    difference: Difference


@dataclass(frozen=True)
class ModelReport:
    """One model: its targets from large to small, and the comparisons of pairs of them.

    `metrics` in the order of declaration. `kinds` by suite. `required`: operator and value by metric.
    `absent`: declared targets that are not built. `control`: the model without adapter, when one is declared,
    and `plain` its unquantized target. `unread`: what is wrong with the questions of a suite, by suite.
    `top_k` by suite.
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


@dataclass(frozen=True)
class Report:
    """The whole report. `version` is the version of modelkiln."""

    version: str
    models: tuple[ModelReport, ...]
