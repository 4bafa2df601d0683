"""How far llama.cpp's answers are from those of mlx-lm, by architecture.

`python -m tests.publish.gguf.agreement` prints the table of docs/publish.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from builder.console import markdown
from builder.evaluate.worker.llama import LlamaCpp
from builder.evaluate.worker.questions import Ask
from builder.gguf.writing import planned, write
from tests.publish.gguf.models import CONFIGS, make_model

TYPES = ("F32", "F16", "Q8_0")
PROMPTS = tuple(  # the longest are longer than the sliding window of the models that have one
    tuple((7 * i * i + 3 * i + 1 + number * (11 * i + 5)) % 256 for i in range(21 + number))
    for number in range(20)
)


@dataclass(frozen=True)
class Agreement:
    """One type of one architecture: the mean KL over all positions, the largest of a prompt, and the share of
    positions with the same likeliest token.
    """

    wanted: str
    mean: float
    largest: float
    same: float


def written(folder: Path, wanted: str, name: str = "tiny") -> Path:
    made, weights = planned(folder, name, wanted)
    file = folder.parent / f"{folder.name}-{wanted}.gguf"
    write(file, made, weights, target=name, wanted=wanted, about={"name": name}, step=lambda count: None)
    return file


def logprobs(logits: Any) -> Any:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def of_llama(file: Path, prompts: Sequence[tuple[int, ...]]) -> list[Any]:
    model = LlamaCpp(file, max(map(len, prompts)))
    try:
        return [logprobs(model.logits(Ask(tokens, 1)).astype(np.float64)) for tokens in prompts]
    finally:
        model.close()


def of_mlx(folder: Path, name: str) -> list[Any]:
    """Of the model in float32, with the weights of the folder."""
    model, tensors = make_model(folder, CONFIGS[name])
    model.update(tree_unflatten([(k, v.astype(mx.float32)) for k, v in tensors.items()]))
    return [logprobs(np.array(model(mx.array([tokens[:-1]]))[0]).astype(np.float64)) for tokens in PROMPTS]


def agreements(folder: Path, name: str, types: Iterable[str] = TYPES) -> list[Agreement]:
    """What a model of this architecture answers in both programs."""
    expected = of_mlx(folder, name)
    assert np.mean([np.exp(each).max(-1).mean() for each in expected]) > 0.02, "its answers differ"
    found = []
    for wanted in types:
        got = of_llama(written(folder, wanted), PROMPTS)
        pairs = list(zip(expected, got, strict=True))
        kls = [(np.exp(p) * (p - q)).sum(-1) for p, q in pairs]
        same = np.concatenate([p.argmax(-1) == q.argmax(-1) for p, q in pairs])
        mean = float(np.concatenate(kls).mean())
        found.append(Agreement(wanted, mean, max(float(each.mean()) for each in kls), float(same.mean())))
    return found


def main() -> int:
    rows = []
    for name in CONFIGS:
        with TemporaryDirectory() as folder:
            found = agreements(Path(folder) / "m", name)
        cells = [f"{each.mean:.1e} ({each.largest:.1e}), {100 * each.same:.1f} %" for each in found]
        rows.append((name, *cells))
    print("\n".join(markdown.table(("model type", *TYPES), rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
