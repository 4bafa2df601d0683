"""Experts are multiplied once for all tokens of a piece, and the numbers are those of the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.engine.rounding import grouped
from builder.engine.rounding.moments import Seen, taps
from builder.engine.rounding.walk import walk
from builder.evaluate.worker.scorable import load_float32
from tests.architectures import checkpoint
from tests.engine.rounding.models import BY_NAME, runnable


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])  # the second has biases
def test_the_numbers_of_the_model(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_float32(checkpoint(tmp_path, runnable(BY_NAME[name])))
    tokens = mx.array([[(7 * row + place * place) % 90 for place in range(300)] for row in range(5)])
    product, calls = grouped.by_expert, list[int]()

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return product(*arguments)

    def walked() -> tuple[mx.array, dict[str, Seen]]:
        seen: dict[str, Seen] = {}

        def visit(path: str, layer: Any, run: Any) -> Any:
            with taps(layer, path) as seen[path]:
                return run()

        made = walk(model, tokens, visit)
        mx.eval(made)
        return made, seen

    monkeypatch.setattr(grouped, "by_expert", counted)
    made, seen = walked()
    assert calls
    assert mx.allclose(made, model(tokens), atol=1e-4)
    monkeypatch.setattr(grouped, "experts_together", None)
    monkeypatch.setattr("builder.engine.rounding.walk.experts_together", lambda _: grouped.nullcontext())
    _, plainly = walked()
    assert any(each.experts for each in seen.values())
    for path, each in seen.items():
        for stack, sums in each.experts.items():
            other = plainly[path].experts[stack]
            assert {n: s.count for n, s in sums.items()} == {n: s.count for n, s in other.items()}
            assert all(mx.allclose(sums[n].total, other[n].total, rtol=1e-3, atol=1e-3) for n in sums)
