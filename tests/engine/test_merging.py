"""A PEFT adapter on the names of the checkpoint gives what merging first and loading afterwards gives.

For every architecture of mlx-lm that can be built small, under mlx-lm's names and, where `sanitize` changes
values, under the names and shapes of Hugging Face.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.sources.adapters.places import check_fit, placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.spec.types import Adapter, Variant
from builder.weights.structure import Structure
from tests.architectures import REGISTRY, Architecture, build, checkpoint, known, parameters
from tests.comparison import stream
from tests.original_names import Tensors
from tests.undone import UNDONE, undone

RANK, ALPHA = 4, 6.0
F32 = Variant("f32", dtype="float32")
# Packed bases, and what mlx-lm itself cannot load.
LEFT_OUT = ("olmo", "prism_hadamard_qwen35", "deepseek_v41")
LISTED = [a for a in REGISTRY if not a.fails and a.model_type not in LEFT_OUT]
EVERY_TIME = {"gpt2-original", "qwen3_next-original", "mixtral-original", "deepseek_v3-original"}


def random(seed: int, shape: tuple[int, ...]) -> mx.array:
    return mx.random.normal(shape, scale=0.1, key=mx.random.key(seed))


@dataclass(frozen=True)
class Change:
    """What a test adapter does to one tensor of the checkpoint: a pair (A, B) of PEFT, or a whole tensor."""

    kind: str  # linear, embedding, conv1d (a weight stored as (in, out)), whole
    arrays: tuple[mx.array, ...]

    def applied(self, weight: mx.array) -> mx.array:
        if self.kind == "whole":
            return self.arrays[0]
        a, b = self.arrays
        delta = ALPHA / RANK * (b @ a)
        return weight.astype(mx.float32) + (delta if self.kind == "linear" else delta.T)

    def stored(self, name: str) -> Tensors:
        """As PEFT names it."""
        if self.kind == "whole":
            return {f"base_model.model.{name}": self.arrays[0]}
        path = f"base_model.model.{name.removesuffix('.weight')}"
        if self.kind == "embedding":
            return {f"{path}.lora_embedding_{letter}": a for letter, a in zip("AB", self.arrays, strict=True)}
        return {f"{path}.lora_{letter}.weight": a for letter, a in zip("AB", self.arrays, strict=True)}


def changes(base: Path, structure: Structure, *, conv1d: bool) -> dict[str, Change]:
    """A pair for two of three matrices of the checkpoint, and a whole tensor for every other tensor."""
    model, _ = load_base(base)
    embeddings = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Embedding)}
    places = places_of(structure)
    found = {}
    for number, (name, array) in enumerate(sorted(tensors_of(base).items())):
        made = places.made_from(name)
        if not made or f"{structure.tied}.weight" in made or not mx.issubdtype(array.dtype, mx.floating):
            continue
        if name in structure.changed_before:
            continue
        if array.ndim == 2 and name.endswith(".weight") and number % 3:
            out, width = array.shape
            kind = "embedding" if embeddings & set(made) else "linear"
            if conv1d and not places.as_it_is(name, made):
                kind = "conv1d"
            if kind != "linear":  # both are W + scale (B A)^T
                out, width = width, out
            found[name] = Change(kind, (random(number, (RANK, width)), random(9999 - number, (out, RANK))))
        elif number % 2 and "." in name:
            found[name] = Change("whole", (random(number, array.shape) + (array.ndim == 1),))
    return found


def tensors_of(folder: Path) -> Tensors:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def save_peft(folder: Path, made: dict[str, Change], *, conv1d: bool) -> Path:
    folder.mkdir()
    tensors = {k: mx.contiguous(v) for name, change in made.items() for k, v in change.stored(name).items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors)
    whole = sorted(name.rpartition(".")[0] for name, change in made.items() if change.kind == "whole")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "modules_to_save": whole}
    config |= {"fan_in_fan_out": conv1d}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def assert_as_merged(base: Path, *, conv1d: bool = False) -> None:
    """Builds the base with an adapter on most of its tensors, and compares every parameter."""
    structure = inspect(base)
    made = changes(base, structure, conv1d=conv1d)
    folder = save_peft(base.parent / "adapter", made, conv1d=conv1d)
    declared, places = Adapter("a", "b", folder), places_of(structure)
    check_fit(declared, placed(read_adapter(declared), declared, places), places)
    ours = stream(base, folder, [F32], structure=structure)["f32"].tensors

    merged = shutil.copytree(base, base.parent / "merged")
    tensors = {n: made[n].applied(a) if n in made else a for n, a in tensors_of(base).items()}
    mx.save_safetensors(str(merged / "model.safetensors"), tensors)
    before, expected = (dict(tree_flatten(load_base(f)[0].parameters())) for f in (base, merged))
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        if tensor.dtype != "F32":
            continue
        array = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        wanted, former = (np.array(known[name].astype(mx.float32)) for known in (expected, before))
        np.testing.assert_allclose(array, wanted, rtol=2e-5, atol=2e-5, err_msg=name)
        sources = structure.origins[name].names() if name in structure.origins else [name]
        assert np.array_equal(array, former) != any(source in made for source in sources), name


def listed() -> list[object]:
    return [
        pytest.param(a, id=a.name, marks=[] if a.name in EVERY_TIME else [pytest.mark.slow]) for a in LISTED
    ]


@pytest.mark.parametrize("architecture", listed())
def test_every_architecture(architecture: Architecture, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", replace(architecture, dtype="float32"))
    assert_as_merged(base, conv1d=architecture.name == "gpt2-original")


@pytest.mark.parametrize("kind", UNDONE)
def test_what_a_sanitize_does_to_values(kind: str, tmp_path: Path) -> None:
    architecture = replace(UNDONE[kind][0], dtype="float32")
    base = tmp_path / "base"
    base.mkdir()
    config = known(architecture.config) if "text_config" not in architecture.config else architecture.config
    (base / "config.json").write_text(json.dumps(config))
    tensors = undone(kind, dict(parameters(build(config), architecture)))
    mx.save_safetensors(str(base / "model.safetensors"), tensors)
    assert_as_merged(base)
