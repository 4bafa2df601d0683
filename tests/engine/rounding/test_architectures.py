"""Every text architecture of mlx-lm is rounded for a text: the tensors of a plain pass, with a smaller error.

Or it is refused with one clear error, as REFUSED says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from builder.errors import EngineError
from builder.spec.types import Quantization, Variant
from tests.architectures import REGISTRY, Architecture, checkpoint
from tests.comparison import specs, stream
from tests.engine.rounding.models import World, as_arrays, logits, runnable, text

FOUR = Variant("4bit", quantization=Quantization(4, 32))
EVERY_TIME = {"gemma3n", "qwen3_moe"}

# What cannot be rounded, and what the error says.
REFUSED = {
    "afm7": "it is given a ConcatenateKVCache, which it changes",  # later layers read what it holds
    "deepseek_v41": "it is given a LayerCache, which it changes",
}
# What mlx-lm runs on a GPU only.
NEEDS_A_GPU = {"bitnet", "muse_spark"}
# What mlx-lm cannot load, or holds packed weights already.
NOT_BUILT = {"olmo", "prism_hadamard_qwen35"}
# Architectures whose error is not smaller, and why: none. The mean ratio is 0.38, the largest 0.82.
NOT_BETTER: dict[str, str] = {}
# Models that call what is inside of their layers, never the layers: nothing is known of the inputs.
UNREACHED = {"iquestloopcoder"}
# Models that multiply by the weight of a projection without calling the projection.
UNKNOWN = {"gpt_neox"}


def listed() -> list[Any]:
    return [
        pytest.param(a, id=a.name, marks=[] if a.name in EVERY_TIME else [pytest.mark.slow])
        for a in REGISTRY
        if a.model_type not in NOT_BUILT
    ]


def error(made: Any, expected: Any) -> float:
    """The mean squared error of the logits that are numbers: some models rule tokens out by -inf."""
    held = np.isfinite(expected)
    assert np.isfinite(made[held]).all()
    return float(((made[held] - expected[held]).astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("architecture", listed())
def test_rounded_for_a_text(architecture: Architecture, tmp_path: Path) -> None:
    world = World(checkpoint(tmp_path / "base", runnable(architecture)), tmp_path / "made", FOUR)
    tokens = text(40, 48)
    refused = REFUSED.get(architecture.model_type)
    if architecture.model_type in NEEDS_A_GPU and not mx.metal.is_available():
        refused = "No Metal back-end"
    if refused is not None:
        with pytest.raises(EngineError, match=refused) as caught:
            world.round(tokens)
        assert "\n" not in caught.value.message
        return
    world.round(tokens)
    plain = stream(world.base, None, [FOUR], structure=world.structure)[FOUR.name].tensors
    assert sorted(world.made) == sorted(world.structure.blocks)
    assert specs(world.tensors) == specs(plain)
    in_order = list(world.made) == list(world.structure.blocks)
    assert in_order == (architecture.model_type not in UNREACHED)
    blind = {name: made.blind for name, made in world.made.items() if made.blind}
    assert bool(blind) == (architecture.model_type in {*UNREACHED, *UNKNOWN}), blind
    ours, theirs = (as_arrays(tensors, tmp_path) for tensors in (world.tensors, plain))
    for name, array in ours.items():
        assert not mx.issubdtype(array.dtype, mx.floating) or bool(mx.isfinite(array).all()), name
    expected = logits(world.base, tokens)
    off, plainly_off = (
        error(logits(world.base, tokens, tensors, world.quantization), expected) for tensors in (ours, theirs)
    )
    print(f"RATIO {architecture.name} {off / plainly_off:.3f}")
    assert off < (1.1 if architecture.name not in NOT_BETTER else 10) * plainly_off


def test_every_exception_is_an_architecture() -> None:
    known = {architecture.model_type for architecture in REGISTRY}
    assert {*REFUSED, *NEEDS_A_GPU, *NOT_BUILT, *UNREACHED, *UNKNOWN} <= known
    assert NOT_BETTER.keys() <= {architecture.name for architecture in REGISTRY}
    assert {architecture.name for architecture in REGISTRY} >= EVERY_TIME
