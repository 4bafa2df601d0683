"""What is said of memory before a model is measured layer by layer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builder.evaluate.memory import layerwise_memory, told
from builder.spec.types import Suite
from builder.weights.structure import Parameter, Structure, TensorSpec


def target(layers: int, *, experts: int = 0) -> Any:
    """A target with an eighth of the bytes of its base: 4 MB outside, and layers of 64 MB."""
    weight = (experts, 1024 * 32 // experts, 1024) if experts else (1024 * 32, 1024)
    shapes = {"model.embed_tokens.weight": (2048, 1024)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.q_proj.weight"] = (8, 1024)
        shapes[f"model.layers.{layer}.up_proj.weight"] = weight
    parameters = tuple(Parameter(TensorSpec(name, "BF16", shape), True) for name, shape in shapes.items())
    structure = Structure("toy", parameters, (), frozenset(), "bfloat16", False, {})
    actions = [SimpleNamespace(block=b, size=size // 8) for b, size in structure.block_nbytes.items()]
    return SimpleNamespace(base=SimpleNamespace(structure=structure), actions=actions)


def test_it_is_that_of_a_layer_and_of_what_is_outside(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("word " * 20_000)
    asked = [Suite("text", "perplexity", tmp_path / "text")]
    moe = layerwise_memory(target(2, experts=4), asked, reference=True)
    assert layerwise_memory(target(40, experts=4), asked, reference=True) == moe
    small = layerwise_memory(target(2, experts=4), asked, reference=False)
    assert moe - small == 7 * (4 + 2 * 64.015625) * 2**20 // 8  # stored: outside, a layer and the next
    dense = layerwise_memory(target(2), asked, reference=True)
    assert dense - moe > 64 << 20  # its layer is in memory as float32
    assert layerwise_memory(target(2, experts=4), [], reference=True) < moe  # fewer tokens
    assert "less than 1.7 GB" in told("m", 1_700_000_000)
