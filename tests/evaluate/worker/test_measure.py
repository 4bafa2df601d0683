"""Choices decided with as few questions as possible are the choices of asking everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.evaluate.worker.measure import Choice, answer
from builder.evaluate.worker.questions import Ask, read_rows
from builder.spec.types import Suite
from tests.evaluate.worker.test_scoring import Words

CANDIDATES = {"one": "abcd", "two": "abef", "three": "xyzw", "four": "pq"}


def choice(folder: Path, count: int = 30) -> Choice:
    rows = []
    for number in range(count):
        label: Any = list(CANDIDATES)[number % 4]
        accepted = [label, "four"] if number % 5 == 0 else label
        messages = [
            {"role": "user", "content": f"question {number:02}"},
            {"role": "assistant", "content": CANDIDATES[label]},
        ]
        rows.append({"messages": messages, "label": accepted})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = Suite("s", "choice", data, candidates=CANDIDATES)
    return Choice(suite, read_rows(suite), Words())


class Model:
    """Random log-probs that depend on what is before a position, as a model's do; counts what it is asked."""

    def __init__(self, sharpness: float) -> None:
        self.sharpness = sharpness
        self.asked = 0

    def __call__(self, asks: Any, take: Any) -> None:
        self.asked += len(asks)
        for index, ask in enumerate(asks):
            take(index, mx.stack([self.row(ask, place) for place in range(ask.start, len(ask.tokens))]))

    def row(self, ask: Ask, place: int) -> mx.array:
        seed = hash(ask.tokens[:place]) % 2**31
        logits = mx.random.normal((4000,), key=mx.random.key(seed)) * self.sharpness
        return logits - mx.logsumexp(logits)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 5.0])
def test_the_same_choices(tmp_path: Path, sharpness: float) -> None:
    few, every = choice(tmp_path), choice(tmp_path)
    quick, slow = Model(sharpness), Model(sharpness)
    answer([few], quick)
    answer([every], slow, at_once=True)
    assert few.result() == every.result()
    assert slow.asked == 30 * 4
    assert quick.asked < slow.asked or sharpness == 0  # where all are alike, all are asked
