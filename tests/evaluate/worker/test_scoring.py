"""Scoring beside the plain way: one sequence at a time through the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from builder.evaluate.worker import scoring
from builder.evaluate.worker.layerwise import score_by_layer
from builder.evaluate.worker.questions import Ask, accepted, answer_asks, candidate_asks, read_rows
from builder.evaluate.worker.scorable import load_float32
from builder.evaluate.worker.scoring import batches, positions_at_once, score
from builder.spec.types import Suite
from tests.architectures import REGISTRY, Architecture, checkpoint
from tests.conftest import fresh_python
from tests.tiny import make_base

ASKS = [
    Ask((1, 2, 3, 4, 5), 2),
    Ask((1, 2, 3), 1),
    Ask((9, 8, 7, 6, 5, 4, 3), 5),
    Ask((1, 2, 9, 9), 2),
    Ask((4, 4), 1),
]


AS_MANY_AS_TOKENS = [Ask((1, 2, 3, 4, 5), 3), Ask((1, 2, 3), 1)]  # one row of 4 tokens, 4 positions


def plainly(model: Any, asks: list[Ask]) -> list[mx.array]:
    found = []
    for ask in asks:
        logits = model(mx.array([ask.tokens[:-1]]))[0, ask.start - 1 :]
        found.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return found


def collect(scorer: Any, model: Any, asks: list[Ask], size: int) -> list[mx.array]:
    found: dict[int, mx.array] = {}
    scorer(model, asks, found.__setitem__, size)
    return [found[i] for i in range(len(asks))]


@pytest.mark.parametrize("scorer", [score, score_by_layer])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_batches_give_the_numbers_of_single_runs(tmp_path: Path, scorer: Any, size: int) -> None:
    folder = make_base(tmp_path)
    expected = plainly(load_float32(folder), ASKS)
    for ours, plain in zip(collect(scorer, load_float32(folder), ASKS, size), expected, strict=True):
        assert ours.shape == plain.shape
        assert mx.allclose(ours, plain, atol=1e-5)


QUICK = ("llama", "gemma2", "gemma3n", "mixtral", "mamba2", "gpt2", "gpt_neox")  # the last two: other heads
SLOW = ("cohere", "deepseek_v3", "jamba", "qwen3_next", "falcon_h1", "granite", "minicpm", "olmo2")
ARCHITECTURES = [
    pytest.param(each, id=each.model_type, marks=[pytest.mark.slow] if each.model_type in SLOW else [])
    for each in REGISTRY
    if each.model_type in (*QUICK, *SLOW) and not each.label
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scorer", [score, score_by_layer])
def test_any_architecture(tmp_path: Path, architecture: Architecture, scorer: Any) -> None:
    folder = checkpoint(tmp_path, architecture)
    for asks in (ASKS, AS_MANY_AS_TOKENS):
        expected = plainly(load_float32(folder), asks)
        for ours, plain in zip(collect(scorer, load_float32(folder), asks, 3), expected, strict=True):
            assert mx.allclose(ours, plain, atol=1e-4)


def test_a_beginning_rides_with_the_sequence_it_begins() -> None:
    made = list(batches(ASKS, 8))
    assert [len(batch.tokens) for batch in made] == [4]
    assert sorted(index for batch in made for index, _, _ in batch.asks) == [0, 1, 2, 3, 4]


def test_a_batch_keeps_within_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [Ask((i, *range(10, 10 + length)), 2) for i, length in enumerate((5, 5, 6, 7, 30))]
    assert [len(b.tokens) for b in batches(asks, 8, 10)] == [2, 1, 1, 1]  # 4 + 4, 5, 6, 29 positions
    monkeypatch.setattr(scoring, "TOKENS", 16)
    assert [len(b.tokens) for b in batches(asks, 8)] == [2, 2, 1]
    expected = plainly(load_float32(make_base(tmp_path)), asks)
    monkeypatch.setattr(scoring, "LOGITS", 320 * 10)
    model = load_float32(tmp_path)
    assert positions_at_once(model) == 10
    for ours, plain in zip(collect(score, model, asks, 8), expected, strict=True):
        assert mx.allclose(ours, plain, atol=1e-5)


def test_a_failing_layer_ends_the_run(tmp_path: Path) -> None:
    model = load_float32(make_base(tmp_path))
    model.layers[2].mlp.up_proj.weight = mx.zeros((3, 3))
    with pytest.raises(ValueError, match="matmul"):
        collect(score_by_layer, model, ASKS, 2)


# -- questions -----------------------------------------------------------------------------------------------


class Words:
    """A tokenizer with two-character tokens, so that a candidate can end inside one."""

    has_chat_template = True
    eos_token_ids = frozenset({0})

    def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += [
                1,
                *self.encode(message["content"]),
                *([0, 2] if message["role"] == "assistant" else []),
            ]
        return [*tokens, 1] if how.get("add_generation_prompt") else tokens

    def encode(self, text: str) -> list[int]:
        return [sum(map(ord, text[i : i + 2])) + 1000 * len(text[i : i + 2]) for i in range(0, len(text), 2)]


def data(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(question: str, answer: str, label: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "label": label}


def test_a_candidate_is_cut_at_the_last_token_it_shares(tmp_path: Path) -> None:
    rows = [row("q1", "abcdef", "one"), row("q2", "xyz", "two")]
    suite = Suite("s", "choice", data(tmp_path, rows), candidates={"one": "abc", "two": "xy"})
    asks = candidate_asks(suite, read_rows(suite), Words())
    words = Words()
    assert [list(a["one"].tokens[a["one"].start :]) for a in asks] == [words.encode("ab")] * 2
    assert [list(a["two"].tokens[a["two"].start :]) for a in asks] == [words.encode("xy")] * 2
    assert [accepted(suite, each) for each in rows] == [("one",), ("two",)]


def test_an_answer_ends_with_the_end_token(tmp_path: Path) -> None:
    (ask,) = answer_asks(Suite("s", "exact"), [row("q", "abcd", "x")], Words())
    assert list(ask.tokens[ask.start :]) == [*Words().encode("abcd"), 0]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (
            [[]],
            'line 1: expected {"messages": [..., the right answer]}, {"prompt": ..., "completion": ...} or',
        ),
        ([row("q", "a", "x"), {"messages": []}], "line 2: expected"),
        ([row("q", "abc", "other")], "label is 'other', which is not a candidate (one, two)"),
    ],
)
def test_wrong_data_is_named(tmp_path: Path, rows: list[Any], what: str) -> None:
    from builder.evaluate.worker.measure import Choice
    from builder.evaluate.worker.questions import DataInvalid

    suite = Suite("s", "choice", data(tmp_path, rows), candidates={"one": "ab", "two": "cd"})
    with pytest.raises(DataInvalid) as caught:
        Choice(suite, read_rows(suite), Words())
    assert what in str(caught.value)


MEMORY = """
import sys
import mlx.core as mx
from pathlib import Path
from builder.evaluate.worker import layerwise, scoring
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import load_float32
model = load_float32(Path(sys.argv[1]))
asks = [Ask(tuple(range(i, i + 20)), 5) for i in range(4)]
how = {"all": scoring.score, "layer": layerwise.score_by_layer}[sys.argv[2]]
how(model, asks, lambda i, lp: lp.sum().item(), 2)
print(mx.get_peak_memory())
"""


def test_by_layer_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    """24 layers of 0.6 MB in float32."""
    make_base(tmp_path, layers=24)
    grown = {}
    for how in ("all", "layer"):
        grown[how] = int(fresh_python(MEMORY, str(tmp_path), how))
    assert grown["layer"] < grown["all"] / 2, grown
