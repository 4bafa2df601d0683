"""What artifacts.toml declares, as frozen values. `builder.spec.parse` turns the file into a Spec.

After parsing, no TOML dict exists anywhere. All other packages take these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from builder.spec.destinations import Publication
from builder.spec.quantizers import Calibrated, Experts, GgufKind, Goal, Learned
from builder.spec.settings import BuildSettings
from builder.spec.sharing import Remote
from builder.spec.training import Training

TOKENIZERS = ("base", "adapter")
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class PathSource:
    """A local directory in Hugging Face layout (config.json, model*.safetensors, tokenizer files)."""

    path: Path


@dataclass(frozen=True)
class HfSource:
    """A Hugging Face repository at a revision, found in the local cache first."""

    repo: str
    revision: str


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file: a path, or `package:file` for a file that an installed Python package carries."""

    location: str
    package: str | None
    path: Path


BaseSource = PathSource | HfSource | GgufSource


@dataclass(frozen=True)
class Base:
    """Where the original weights come from. `dequantize` accepts a base that is quantized already."""

    name: str
    source: BaseSource
    dequantize: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Adapter:
    """What was learned on top of the base named `base`. With `train` only a catalog knows its folder, `path`.

    `tokenizer` says whose tokenizer targets get: "base", "adapter", or None where the file does not say it.
    """

    name: str
    base: str
    path: Path
    tokenizer: str | None = None
    train: Training | None = None


@dataclass(frozen=True)
class Quantization:
    """How the weight of one module path is stored: the arguments of mx.quantize.

    `bits` is per element. `group_size` is in elements.
    """

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True)
class Override:
    """A glob over module paths ("lm_head", "model.layers.*.mlp.gate") and what holds there.

    `quantization` None leaves the matching paths unquantized. The first matching override wins.
    """

    pattern: str
    quantization: Quantization | None


@dataclass(frozen=True)
class Variant:
    """How weights are stored. `quantization` excludes `recipe`, `learned` excludes `calibrated`, `gguf` all.

    With `goal` each weight gets its own bits, so that the model costs least for its size. With `experts`
    some experts of each layer are left out. `dtype` None keeps the dtype of the base. `recipe` is a mixed
    recipe of mlx_lm.convert, used with `group_size`.
    """

    name: str
    dtype: str | None = None
    quantization: Quantization | None = None
    recipe: str | None = None
    group_size: int = 64
    overrides: tuple[Override, ...] = ()
    intermediate: bool = False
    learned: Learned | None = None
    calibrated: Calibrated | None = None
    goal: Goal | None = None
    gguf: GgufKind | None = None
    experts: Experts | None = None

    @property
    def calibration(self) -> Path | None:
        """The text that the variant is made for, or None."""
        made_for = self.learned or self.text
        return made_for.calibration if made_for else None

    @property
    def text(self) -> Calibrated | None:
        """The text that something is measured with before the variant is made, or None."""
        return self.gguf.weighed if self.gguf else self.calibrated

    @property
    def made_from(self) -> tuple[str, ...]:
        """The variants whose weights it reads."""
        named = (self.learned.source, self.learned.start) if self.learned else ()
        return tuple(name for name in (*named, self.gguf.of if self.gguf else None) if name)

    @property
    def rounds_for_text(self) -> bool:
        """Whether its blocks are rounded one after the other for a text."""
        return self.calibrated is not None and not self.calibrated.nearest

    @property
    def is_quantized(self) -> bool:
        how = (self.quantization, self.recipe, self.goal, self.learned)
        return any(each is not None for each in how)

    @property
    def common_group(self) -> int:
        """The group size, in elements, of every path without an override."""
        return self.quantization.group_size if self.quantization else self.group_size


SuitePart = Literal["all", "search", "rest"]
SuiteKind = Literal["choice", "exact", "generate", "perplexity", "fidelity", "command"]
UNSCORED: tuple[SuiteKind, ...] = ("generate", "command")  # they need more than the log-probs of an answer
CHECKS = ("exact", "regex", "json", "tool_call")

# The figures that each kind of suite measures. True: more is better. A command chooses its own figures.
METRICS: Mapping[SuiteKind, Mapping[str, bool]] = {
    "choice": {"accuracy": True, "greedy": True},
    "exact": {"rate": True},
    "generate": {"rate": True, "tokens_per_second": True, "seconds": False, "memory": False},
    "perplexity": {"perplexity": False},
    "fidelity": {"kl": False, "kl_p99": False, "agreement": True},
    "command": {},
}


@dataclass(frozen=True)
class Suite:
    """Questions that a target is measured by.

    `data` is a .jsonl of `messages` or a text. `answer` is the key of a row that names the accepted
    candidates. Only rows that hold the values of `where` are asked. `batch` is in rows, `window` and
    `max_tokens` in tokens, `timeout` in seconds. `top_k` is how many log-probs of the reference are kept per
    position. `part` says which questions are asked: a target that searches its size asks one half while it
    searches, and is measured by the rest.
    """

    name: str
    kind: SuiteKind
    data: Path | None = None
    part: SuitePart = "all"
    candidates: Mapping[str, str] = field(default_factory=dict)
    answer: str = "label"
    where: Mapping[str, str] = field(default_factory=dict)
    check: str = "exact"
    max_tokens: int = 256
    top_k: int = 64
    window: int = 512
    batch: int = 8
    command: str = ""
    timeout: int | None = None


class Metric(NamedTuple):
    """A figure of a suite. Both names may hold dots, so the text SUITE.NAME is never cut into its parts."""

    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}.{self.name}"


@dataclass(frozen=True)
class Condition:
    """What a figure of a suite must reach: `metric` `operator` `value`. The operator is >=, <=, > or <."""

    metric: Metric
    operator: str
    value: float

    @property
    def suite(self) -> str:
        return self.metric.suite

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.value:g}"


@dataclass(frozen=True)
class Model:
    """A base, with or without an adapter, and the variants to make of it.

    `suites` measure each target of the model. A target passes when all conditions in `require` hold.
    `seed_of` is the name that was declared, where `seeds` made several models of it.
    """

    name: str
    base: str
    adapter: str | None
    variants: tuple[str, ...]
    suites: tuple[str, ...] = ()
    require: tuple[Condition, ...] = ()
    seed_of: str | None = None


@dataclass(frozen=True)
class Target:
    """One variant of one model. `name` is what a person types: model:<name>."""

    model: Model
    variant: Variant

    @property
    def name(self) -> str:
        return f"{self.model.name}_{self.variant.name}"


@dataclass(frozen=True)
class Spec:
    """Everything that is declared. Paths are absolute. The mappings go from name to value, in file order."""

    file: Path
    store: Path
    bases: Mapping[str, Base] = field(default_factory=dict)
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    suites: Mapping[str, Suite] = field(default_factory=dict)
    build: BuildSettings = field(default_factory=BuildSettings)
    production: str | None = None  # the name of a target
    publications: Mapping[str, Publication] = field(default_factory=dict)
    published: tuple[str, ...] = ()  # the publications that are part of a release
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    # What was read of the file. It may hold something else by now, and nothing of that is in here.
    text: bytes = field(default=b"", compare=False, repr=False)

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(Target(m, self.variants[name]) for m in self.models.values() for name in m.variants)

    def suites_of(self, target: Target) -> tuple[Suite, ...]:
        """The suites that measure a target, with the questions that took no part in a search of its size."""
        gguf = target.variant.gguf
        searched = Target(target.model, self.variants[gguf.of]) if gguf and gguf.of else target
        asked = (self.suites[name] for name in target.model.suites)
        left_out = "command" if gguf else None  # it is given a directory that mlx-lm loads
        return tuple(part_of(suite, searched, "rest") for suite in asked if suite.kind != left_out)

    def search_suites(self, target: Target) -> tuple[Suite, ...]:
        """What a target that searches its size is judged by meanwhile: the suites of its requirements."""
        names = {condition.suite for condition in target.model.require}
        asked = (self.suites[name] for name in target.model.suites if name in names)
        return tuple(part_of(suite, target, "search") for suite in asked)

    def target(self, name: str) -> Target:
        """The target of that name. Raises KeyError."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Target]:
        return {target.name: target for target in self.targets}


def part_of(suite: Suite, target: Target, part: SuitePart) -> Suite:
    """The suite with a part of its questions, where the target searches its size. A command has no parts."""
    goal = target.variant.goal
    return replace(suite, part=part) if goal and goal.smallest and suite.kind != "command" else suite
