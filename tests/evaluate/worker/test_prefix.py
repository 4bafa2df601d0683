"""A beginning that is computed once changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.evaluate.worker.layerwise import score_by_layer
from builder.evaluate.worker.prefix import shared_beginning
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import load_float32
from builder.evaluate.worker.scoring import score
from tests.architectures import REGISTRY, checkpoint
from tests.tiny import make_base

SYSTEM = tuple(range(10, 22))
ASKS = [Ask((*SYSTEM, *(i * j % 90 for j in range(1, 5 + i))), 14 + i % 2) for i in range(1, 8)]


def test_it_ends_before_the_first_scored_token(tmp_path: Path) -> None:
    model = load_float32(make_base(tmp_path))
    assert shared_beginning(model, ASKS) == SYSTEM
    early = Ask((*SYSTEM, 1, 2, 3), 11)
    assert shared_beginning(model, [*ASKS, early]) == SYSTEM[:10]
    assert shared_beginning(model, [*ASKS, Ask((*SYSTEM[:7], 1, 2, 3), 9)]) == ()
    assert shared_beginning(model, ASKS[:1]) == ()


@pytest.mark.parametrize("scorer", [score, score_by_layer])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "nemotron-nas", "gemma2", "jamba", "mamba2"])
def test_the_numbers_of_whole_sequences(tmp_path: Path, name: str, scorer: Any) -> None:
    """nemotron-nas has layers without attention; jamba and mamba2 keep states, which are not shared."""
    folder = checkpoint(tmp_path, next(each for each in REGISTRY if each.name == name))
    found: dict[int, mx.array] = {}
    scorer(load_float32(folder), ASKS, found.__setitem__, 3)
    model = load_float32(folder)
    assert bool(shared_beginning(model, ASKS)) == (name not in ("jamba", "mamba2"))
    for index, ask in enumerate(ASKS):
        plain = model(mx.array([ask.tokens[:-1]]))[0, ask.start - 1 :]
        plain = plain - mx.logsumexp(plain, axis=-1, keepdims=True)
        assert mx.allclose(found[index], plain, atol=1e-4)
