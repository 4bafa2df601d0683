"""What artifacts.toml declares, as frozen values. `builder.spec.parse` turns the file into a Spec.

After parsing no TOML dict exists anywhere: everything downstream takes these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

DTYPES = ("float16", "bfloat16", "float32")
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")

# mode -> (allowed bits, allowed group sizes, default bits, default group size): what mx.quantize takes.
MODES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128), 4, 64),
    "mxfp4": ((4,), (32,), 4, 32),
    "nvfp4": ((4,), (16,), 4, 16),
    "mxfp8": ((8,), (32,), 8, 32),
}


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
    name: str
    source: BaseSource
    dequantize: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Adapter:
    name: str
    base: str
    path: Path


@dataclass(frozen=True)
class Quantization:
    """How one path is stored: arguments of mx.quantize. group_size in elements, bits per element."""

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


METHODS = ("dwq", "awq", "gptq", "dynamic")


@dataclass(frozen=True)
class Learned:
    """A whole-model step of mlx_lm.quant that needs a model on disk and text to calibrate with.

    `source` is the variant whose directory it reads. samples: sequences of `sequence_length` tokens.
    high_bits and target_bpw (bits per weight) are `dynamic`'s, learning_rate is `dwq`'s.
    """

    method: str
    source: str
    calibration: Path
    seed: int = 0
    samples: int = 128
    sequence_length: int = 512
    learning_rate: float = 1e-6
    high_bits: int = 8
    target_bpw: float = 5.0


@dataclass(frozen=True)
class Variant:
    """How weights are stored. `dtype` None: the base's own. At most one of `quantization` and `recipe`.

    `recipe` is one of mlx_lm.convert's mixed recipes, with `group_size`.
    """

    name: str
    dtype: str | None = None
    quantization: Quantization | None = None
    recipe: str | None = None
    group_size: int = 64
    overrides: tuple[Override, ...] = ()
    intermediate: bool = False
    learned: Learned | None = None

    @property
    def is_quantized(self) -> bool:
        return self.quantization is not None or self.recipe is not None

    @property
    def common_group(self) -> int:
        """The group size that holds where nothing else is said."""
        return self.quantization.group_size if self.quantization else self.group_size


SuiteKind = Literal["choice", "exact", "generate", "perplexity", "fidelity", "command"]
CHECKS = ("exact", "regex", "json", "tool_call")

# The figures that each kind of suite measures; a command's are its own. True: more is better.
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

    `data` is a .jsonl of `messages` (or a text), `answer` the key of a row that names the accepted
    candidates, `where` what a row must hold to be asked. `batch` is in rows, `window` in tokens, `top_k` how
    many log-probs of the reference are kept per position, `timeout` in seconds.
    """

    name: str
    kind: SuiteKind
    data: Path | None = None
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
    """A figure of a suite, by its name. Both names may hold dots, so the text form is never cut again."""

    suite: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}.{self.name}"


@dataclass(frozen=True)
class Condition:
    """What a figure of a suite must be: `metric` `operator` `value`. The operator is >=, <=, > or <."""

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
    """A base, an adapter on top of it or none, and the variants to make of it.

    `suites` measure each of its targets; a target passes when all of `require` hold.
    """

    name: str
    base: str
    adapter: str | None
    variants: tuple[str, ...]
    suites: tuple[str, ...] = ()
    require: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Target:
    """model x variant; `name` is what a person types: model:<name>."""

    model: Model
    variant: Variant

    @property
    def name(self) -> str:
        return f"{self.model.name}_{self.variant.name}"


@dataclass(frozen=True)
class BuildSettings:
    """`strict_toolchain` puts library versions into the keys; `memory` is a limit in bytes, or None."""

    strict_toolchain: bool = False
    survival: bool = True
    memory: int | None = None


@dataclass(frozen=True)
class Spec:
    """Everything that is declared. Paths are absolute; names are keys of the mappings, in file order."""

    file: Path
    store: Path
    bases: Mapping[str, Base] = field(default_factory=dict)
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    suites: Mapping[str, Suite] = field(default_factory=dict)
    build: BuildSettings = BuildSettings()
    production: str | None = None  # the name of a target

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(
            Target(model, self.variants[name]) for model in self.models.values() for name in model.variants
        )

    def target(self, name: str) -> Target:
        """Raises KeyError."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Target]:
        return {target.name: target for target in self.targets}
