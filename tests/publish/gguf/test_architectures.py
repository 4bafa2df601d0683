"""A real llama.cpp computes with our GGUF what mlx-lm computes with the folder, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.publish.gguf import agreement
from tests.publish.gguf.agreement import agreements, logprobs, written
from tests.publish.gguf.models import CONFIGS

__all__ = ["TOKENS", "divergence", "logprobs", "of_llama", "written"]

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
TOKENS = tuple((7 * i * i + 3 * i + 1) % 256 for i in range(40))


def of_llama(file: Path, tokens: tuple[int, ...] = TOKENS) -> Any:
    return agreement.of_llama(file, [tokens])[0]


def divergence(p: Any, q: Any) -> float:
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_answers(tmp_path: Path, name: str) -> None:
    single, half, small = agreements(tmp_path / "m", name)
    # A router that is close to a tie may choose another expert for a token.
    most = 5e-3 if name == "qwen3_moe" else 1e-3
    for each in (single, half):
        assert each.mean < 1e-3
        assert each.largest < most, "of each of the 20 prompts"
        assert each.same > 0.9
    assert small.mean < 0.05
