"""Experts that are multiplied once for all tokens give the numbers of mlx-lm's own forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from bench import inputs
from builder.console.events import Event, Scored
from builder.evaluate.process import Step, ask
from builder.evaluate.run import described
from builder.evaluate.worker import layerwise
from builder.evaluate.worker.by_expert import score_by_expert, suits
from builder.evaluate.worker.layerwise import score_larger
from builder.evaluate.worker.lockstep import Turn
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import Scorable, load_float32, load_scorable
from builder.evaluate.worker.scoring import score
from builder.evaluate.worker.sources import reference_model
from builder.evaluate.worker.walk import Unsuited
from builder.evaluate.worker.whole import Whole
from builder.spec.types import Suite
from tests.architectures import REGISTRY, checkpoint
from tests.conftest import fresh_python
from tests.engine.rounding.models import BY_NAME, runnable

ASKS = [Ask(tuple((7 * i + j * j) % 100 for j in range(6 + i)), 2 + i % 3) for i in range(9)]
SYSTEM = tuple(range(10, 22))
BEGUN = [Ask((*SYSTEM, *(i * j % 90 for j in range(1, 5 + i))), 14 + i % 2) for i in range(1, 8)]
QUICK = ("qwen3_moe", "gpt_oss", "deepseek_v3", "jamba", "nemotron_h", "longcat_flash")
GPU_ONLY = ("muse_spark",)  # mlx-lm itself cannot run it on a CPU
UNREADABLE = ("prism_hadamard_qwen35",)  # mlx-lm cannot dequantize it
# They have no experts. Those of dbrx are plain layers.
WITHOUT = (
    "dbrx", "falcon_h1", "falcon_h1-original", "lfm2", "lfm2-original", "lfm2-vl", "olmo_hybrid", "plamo2",
    "recurrent_gemma",
)  # fmt: skip
FAMILY = [each for each in REGISTRY if each.kind in ("moe", "hybrid")]
ARCHITECTURES = [
    pytest.param(each.name, id=each.name, marks=() if each.name in QUICK else [pytest.mark.slow])
    for each in FAMILY
    if each.name not in (*GPU_ONLY, *UNREADABLE, *WITHOUT)
]


def folder_of(name: str, folder: Path) -> Path:
    return checkpoint(folder, runnable(BY_NAME[name]))


def whole(folder: Path, asks: list[Ask]) -> dict[int, mx.array]:
    found: dict[int, mx.array] = {}
    score(load_float32(folder), asks, found.__setitem__, 4)
    return found


def same(ours: dict[int, mx.array], theirs: dict[int, mx.array]) -> bool:
    return ours.keys() == theirs.keys() and all(
        mx.allclose(ours[index], theirs[index], atol=1e-5) for index in theirs
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_numbers_of_mlx_lm(tmp_path: Path, name: str) -> None:
    folder = folder_of(name, tmp_path)
    for asks in (ASKS, BEGUN):
        found: dict[int, mx.array] = {}
        scorable = load_scorable(folder)
        assert suits(scorable)
        score_by_expert(scorable, asks, found.__setitem__, 4)
        assert same(found, whole(folder, asks))


@pytest.mark.parametrize(("bits", "mode"), [(5, "affine"), (4, "mxfp4")])
def test_the_numbers_of_a_quantized_target(tmp_path: Path, bits: int, mode: str) -> None:
    folder, group = folder_of("qwen3_moe", tmp_path / "base"), 32
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(folder, lazy=True)
    model, config = quantize_model(model, config, group, bits, mode)
    save_model(tmp_path / "target", model)
    save_config(config, tmp_path / "target" / "config.json")
    found: dict[int, mx.array] = {}
    steps: list[tuple[int, int]] = []
    score_by_expert(
        load_scorable(tmp_path / "target"), ASKS, found.__setitem__, 4, lambda *step: steps.append(step)
    )
    assert same(found, whole(tmp_path / "target", ASKS))
    total = sum(file.stat().st_size for file in (tmp_path / "target").glob("*.safetensors"))
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert 0.8 * total < steps[-1][1] <= total  # the rest is the file's header


def test_the_numbers_of_an_adapted_reference(tmp_path: Path) -> None:
    shape = inputs.SHAPES["tiny_moe"]
    base = inputs.make_model(tmp_path / "base", shape)
    worn = inputs.make_adapter(tmp_path / "adapter", shape, shape.blocks // 2)

    def load(*, adapted: bool = True) -> Scorable:
        described = {"directory": str(base), "dequantize": False, "trust_remote_code": False}
        return reference_model(described, {"name": "a", "base": "b", "path": str(worn)} if adapted else None)

    scorable = load()
    assert any(stored.delta is not None for stored in scorable.stored.values())
    found: dict[int, mx.array] = {}
    score_by_expert(scorable, ASKS, found.__setitem__, 4)
    for adapted in (True, False):
        expected: dict[int, mx.array] = {}
        score(load(adapted=adapted).model, ASKS, expected.__setitem__, 4)
        assert same(found, expected) == adapted


def test_questions_in_turn_and_a_model_in_memory(tmp_path: Path) -> None:
    """By expert the model is used up, so it is loaded for each turn. Another model is kept."""
    for name, loads in (("qwen3_moe", 2), ("llama", 1)):
        folder, loaded, told = folder_of(name, tmp_path / name), list[int](), list[str]()

        def load(folder: Path = folder, loaded: list[int] = loaded) -> Scorable:
            loaded.append(1)
            return load_scorable(folder)

        def telling(unit: str, told: list[str] = told) -> Step:
            return lambda *_: told.append(unit)

        found: dict[int, mx.array] = {}
        score_whole = Whole(load, 4, telling, told.append)
        for first in (0, 5):
            made: dict[int, mx.array] = {}
            score_whole(ASKS[first : first + 5], made.__setitem__)
            found |= {first + index: each for index, each in made.items()}
        assert same(found, whole(folder, ASKS))
        assert len(loaded) == loads
        assert set(told) == {"bytes" if loads == 2 else "questions"}


def test_logits_do_not_stay_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored is delivered group by group."""
    monkeypatch.setattr("builder.evaluate.worker.by_expert.TOKENS", 1)
    running: list[int] = []

    def take(index: int, made: mx.array) -> None:
        running.append(sum(thread.name.startswith("Thread") for thread in threading.enumerate()))

    before = sum(thread.name.startswith("Thread") for thread in threading.enumerate())
    score_by_expert(load_scorable(folder_of("qwen3_moe", tmp_path)), ASKS, take, 2)
    assert running[0] > before and running[-1] == before


def test_only_experts_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = load_scorable(folder_of("qwen3_moe", tmp_path / "moe"))
    assert suits(moe)
    for name in ("llama", *WITHOUT):
        assert not suits(load_scorable(folder_of(name, tmp_path / name)))
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert not suits(moe)


def test_a_model_that_computes_in_the_middle_goes_the_plain_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models.qwen3_moe import Qwen3MoeSparseMoeBlock

    folder = folder_of("qwen3_moe", tmp_path)
    expected = whole(folder, ASKS)
    forward = Qwen3MoeSparseMoeBlock.__call__

    def looking(self: nn.Module, x: mx.array) -> mx.array:
        return forward(self, x * (1 if x.sum().item() < 1e9 else 2))

    monkeypatch.setattr(Qwen3MoeSparseMoeBlock, "__call__", looking)
    with pytest.raises(Unsuited):
        score_by_expert(load_scorable(folder), ASKS, lambda *_: None, 4)
    found: dict[int, mx.array] = {}
    told: list[str] = []
    score_larger(lambda: load_scorable(folder), ASKS, found.__setitem__, 4, say=told.append)
    assert same(found, expected)
    assert len(told) == 1 and told[0].startswith("experts are multiplied token by token")


def test_weights_that_are_missed_too_late_are_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("qwen3_moe", tmp_path)
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return load_scorable(folder)

    def fails(*_: Any) -> None:
        raise Unsuited("gone")

    monkeypatch.setattr(layerwise, "score_by_expert", fails)
    found: dict[int, mx.array] = {}
    score_larger(load, ASKS, found.__setitem__, 4)
    assert same(found, whole(folder, ASKS)) and len(loads) == 2


MEMORY = """
import sys
import mlx.core as mx
from pathlib import Path
from builder.evaluate.worker.layerwise import score_larger
from builder.evaluate.worker.questions import Ask
from builder.evaluate.worker.scorable import load_scorable
asks = [Ask(tuple(range(i, i + 20)), 5) for i in range(4)]
score_larger(lambda: load_scorable(Path(sys.argv[1])), asks, lambda i, lp: lp.sum().item(), 2)
print(mx.get_peak_memory())
"""


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    from dataclasses import replace

    peaks = []
    for layers in (2, 10):
        some = runnable(BY_NAME["qwen3_moe"])
        sizes = {"num_hidden_layers": layers, "moe_intermediate_size": 512, "num_experts": 8}
        checkpoint(tmp_path / str(layers), replace(some, changes={**some.changes, **sizes}))
        peaks.append(int(fresh_python(MEMORY, str(tmp_path / str(layers)))))
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_a_worker_tells_bytes(tmp_path: Path) -> None:
    """The whole way: a process of its own, a model that counts as larger than memory, a reference."""
    base = inputs.make_model(tmp_path / "base", inputs.SHAPES["tiny_moe"])
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    request = {
        "directory": None,
        "stored": None,
        "base": {"directory": str(base), "dequantize": False, "trust_remote_code": False},
        "tokenizer": None,
        "adapter": None,
        "suites": [described(Suite("text", "perplexity", tmp_path / "text.txt", window=64))],
        "references": {},
        "make": {},
        "layerwise": True,
    }
    told: list[Event] = []
    answer = ask("m", request, told.append, "m, unquantized")
    assert answer["results"]["text"]["figures"]["perplexity"]["value"] > 1
    steps = [event for event in told if isinstance(event, Scored)]
    assert {event.unit for event in steps} == {"bytes"}
    assert steps[0].done == 0 and steps[-1].done == steps[-1].total > 100_000


# -- functions that take turns -------------------------------------------------------------------------------


def test_turns() -> None:
    seen: list[str] = []

    def work(name: str) -> Callable[[Turn], str]:
        def of(turn: Turn) -> str:
            for number in range(2):
                seen.append(f"{name} asks {number}")
                seen.append(f"{name} gets {turn.ask((name, number))}")
            return name.upper()

        return of

    turns = [Turn(work(name)) for name in "ab"]
    asked = [turn.advance() for turn in turns]
    asked += [turn.advance("one") for turn in turns]
    assert [turn.advance("two") for turn in turns] == [None, None]
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [turn.result for turn in turns] == ["A", "B"] and all(turn.done for turn in turns)
    assert seen[:3] == ["a asks 0", "b asks 0", "a gets one"]


def test_a_turn_that_fails_and_one_that_is_ended() -> None:
    def fails(turn: Turn) -> None:
        turn.ask("x")
        raise ValueError("no")

    turn = Turn(fails)
    assert turn.advance() == "x"
    with pytest.raises(ValueError, match="no"):
        turn.advance()
    left = Turn(fails)
    left.advance()
    left.end()
    assert left.done and left.result is None
    Turn(fails).end()  # one that never began
