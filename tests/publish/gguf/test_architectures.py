"""A real llama.cpp computes with our GGUF what mlx-lm computes with the folder, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from builder.evaluate.worker.llama import LlamaCpp
from builder.evaluate.worker.questions import Ask
from builder.gguf.writing import planned, write
from tests.publish.gguf.models import CONFIGS, make_model

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
TOKENS = tuple((7 * i * i + 3 * i + 1) % 256 for i in range(40))  # longer than the sliding window


def written(folder: Path, wanted: str, name: str = "tiny") -> Path:
    made, weights = planned(folder, name, wanted)
    file = folder.parent / f"{folder.name}-{wanted}.gguf"
    write(file, made, weights, target=name, wanted=wanted, about={"name": name}, step=lambda count: None)
    return file


def of_llama(file: Path, tokens: tuple[int, ...] = TOKENS) -> Any:
    model = LlamaCpp(file, len(tokens))
    try:
        return logprobs(model.logits(Ask(tokens, 1)).astype(np.float64))
    finally:
        model.close()


def logprobs(logits: Any) -> Any:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def divergence(p: Any, q: Any) -> float:
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_answers(tmp_path: Path, name: str) -> None:
    model, tensors = make_model(tmp_path / "m", CONFIGS[name])
    model.update(tree_unflatten([(k, v.astype(mx.float32)) for k, v in tensors.items()]))
    expected = logprobs(np.array(model(mx.array([TOKENS[:-1]]))[0]).astype(np.float64))
    assert float(np.exp(expected).max(-1).mean()) > 0.02, "the answers differ from position to position"
    for wanted in ("F32", "F16"):
        found = of_llama(written(tmp_path / "m", wanted))
        assert divergence(expected, found) < 1e-3
        assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.9
    assert divergence(expected, of_llama(written(tmp_path / "m", "Q8_0"))) < 0.05
