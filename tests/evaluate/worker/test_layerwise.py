"""Layer by layer gives the very numbers of the whole model, whatever the model does between its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.engine.layers import listed_layers
from builder.evaluate.worker.layerwise import score_by_layer
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import load_float32
from builder.evaluate.worker.scoring import score
from tests.architectures import REGISTRY, Architecture, checkpoint
from tests.tiny import make_base

ASKS = [Ask(tuple((7 * i + j * j) % 100 for j in range(6 + i)), 2 + i % 3) for i in range(9)]

# They differ in where they keep their layers, how they reach them and what they do between them.
NAMES = (
    "qwen2", "qwen3_moe", "deepseek_v3", "gemma3n", "gemma4_text", "gpt_oss", "iquestloopcoder",
    "kimi_linear", "lfm2", "llama4_text", "nemotron_h", "olmo_hybrid", "plamo2", "rwkv7",
)  # fmt: skip
ARCHITECTURES = [pytest.param(each, id=each.name) for each in REGISTRY if each.name in NAMES]


def scored(scorer: Any, folder: Path, size: int = 4) -> list[mx.array]:
    found: dict[int, mx.array] = {}
    scorer(load_float32(folder), ASKS, found.__setitem__, size)
    return [found[i] for i in range(len(ASKS))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_numbers_of_the_whole_model(tmp_path: Path, architecture: Architecture) -> None:
    folder = checkpoint(tmp_path, architecture)
    for by_layer, whole in zip(scored(score_by_layer, folder), scored(score, folder), strict=True):
        assert mx.array_equal(by_layer, whole)


def test_a_layer_stays_what_it_is(tmp_path: Path) -> None:
    model = load_float32(make_base(tmp_path))
    kinds = [type(layer) for layer in listed_layers(model)]
    assert len(kinds) == 4
    score_by_layer(model, ASKS[:2], lambda i, logprobs: None)
    for layer, kind in zip(listed_layers(model), kinds, strict=True):
        assert isinstance(layer, kind) and type(layer).__name__ == kind.__name__


def test_the_model_is_used_up(tmp_path: Path) -> None:
    model = load_float32(make_base(tmp_path))
    score_by_layer(model, ASKS, lambda i, logprobs: None, 3)
    assert not [
        key for module in model.modules() for key, value in module.items() if isinstance(value, mx.array)
    ]
