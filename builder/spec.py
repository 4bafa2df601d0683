"""What artifacts.toml declares, as frozen values. `builder.parse` turns the file into a Spec.

After parsing no TOML dict exists anywhere: everything downstream takes these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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

    @property
    def is_quantized(self) -> bool:
        return self.quantization is not None or self.recipe is not None


@dataclass(frozen=True)
class Model:
    """A base, an adapter on top of it or none, and the variants to make of it."""

    name: str
    base: str
    adapter: str | None
    variants: tuple[str, ...]


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
    build: BuildSettings = BuildSettings()

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(
            Target(model, self.variants[name]) for model in self.models.values() for name in model.variants
        )
