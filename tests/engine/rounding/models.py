"""Tiny models for the tests of calibrated rounding: those of tests.architectures, loaded and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_unflatten

from builder.engine.inspect import inspect
from builder.engine.loading import LoadedAdapter, load_base
from builder.engine.recipe import Recipe
from builder.engine.rounding.shard import Made
from builder.engine.rounding.stream import Rounding, head_moments
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from builder.weights import shards
from builder.weights.shards import RawTensor
from builder.weights.structure import Structure
from tests.architectures import REGISTRY, Architecture, checkpoint

BY_NAME = {architecture.name: architecture for architecture in REGISTRY}

# Models whose layers follow a pattern need more layers to run than to be quantized, and some other sizes.
RUNNABLE: Mapping[str, Mapping[str, Any]] = {
    "qwen": {"kv_channels": 16},
    "gemma3": {"sliding_window_pattern": 2},
    "phi3small": {"vocab_size": 100352},  # it writes to its logits of fixed tokens, also past their end
    "cohere2": {"sliding_window_pattern": 2},
    "llama4": {"num_hidden_layers": 4},
    "mistral4": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "type": "default",
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        }
    },
}


def runnable(architecture: Architecture) -> Architecture:
    """The architecture with the sizes that its forward code needs."""
    return replace(
        architecture, changes={**architecture.changes, **RUNNABLE.get(architecture.model_type, {})}
    )


@cache
def _loaded(name: str) -> Any:
    with TemporaryDirectory() as folder:
        model, _ = load_base(checkpoint(Path(folder) / "base", runnable(BY_NAME[name])))
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return model


def model(name: str) -> Any:
    """A model in float32, the same one in each call. Whoever changes it loads its own."""
    return _loaded(name)


def text(sequences: int, length: int, seed: int = 0) -> mx.array:
    return mx.random.randint(2, 100, (sequences, length), key=mx.random.key(seed))


@dataclass
class World:
    """A base on disk, rounded for a text into a folder."""

    base: Path
    folder: Path
    variant: Variant
    structure: Structure = field(init=False)
    quantization: Mapping[str, Quantization] = field(init=False)
    made: dict[str, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.structure = inspect(self.base)
        self.quantization = resolve(self.structure, self.variant)[0]
        self.folder.mkdir(exist_ok=True)

    def file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"

    def write(self, block: str, made: Made) -> Path:
        self.made[block] = made
        self.file(block).write_bytes(b"".join(shards.encode(made.shard)))
        return self.file(block)

    def done(self, block: str) -> Path | None:
        return self.file(block) if self.file(block).exists() else None

    def round(self, tokens: mx.array, adapter: LoadedAdapter | None = None) -> None:
        """Rounds every block that has no file yet."""
        dtype = self.variant.dtype or self.structure.default_dtype
        tied, head = self.structure.tied, None
        if tied in self.quantization:
            head = head_moments(load_base(self.base)[0], tokens, tied)
        Rounding(
            load_base(self.base)[0],
            adapter,
            Recipe(getattr(mx, dtype) if dtype else None, self.quantization),
            tokens,
            list(self.structure.blocks),
            "test",
            tied=tied,
            head=head,
        ).run(self.done, self.write)

    @property
    def tensors(self) -> dict[str, RawTensor]:
        return {name: tensor for made in self.made.values() for name, tensor in made.shard.items()}


def logits(base: Path, tokens: mx.array, tensors: Mapping[str, mx.array] | None = None,
           quantization: Mapping[str, Quantization] | None = None) -> npt.NDArray[np.float32]:  # fmt: skip
    """What the model in a folder says, in float32, with other (quantized) tensors where they are given."""
    made, _ = load_base(base)
    if tensors:
        made.update(tree_unflatten(list(dequantized(tensors, quantization or {}).items())))
    made.set_dtype(mx.float32)
    return np.array(made(tokens).astype(mx.float32))


def dequantized(
    tensors: Mapping[str, mx.array], quantization: Mapping[str, Quantization]
) -> dict[str, mx.array]:
    """The weights that tensors stand for, in float32."""
    found = {}
    for name, array in tensors.items():
        path, _, leaf = name.rpartition(".")
        how = quantization.get(path)
        if how is None or leaf not in ("weight", "scales", "biases"):
            found[name] = array
        elif leaf == "weight":
            scales, biases = (tensors[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            found[name] = mx.dequantize(array, scales, biases, group_size=how.group_size, bits=how.bits)
    return found


def as_arrays(tensors: Mapping[str, RawTensor], folder: Path) -> dict[str, mx.array]:
    """Tensors as mlx arrays, through a file."""
    file = folder / "all.safetensors"
    file.write_bytes(b"".join(shards.encode(dict(tensors))))
    found: Any = mx.load(str(file))
    mx.eval(found)
    return dict(found)
