"""The declarations and the ratios of the benchmark of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import memory
from bench.inputs import SHAPES, make_model, scaled
from bench.memory import Line
from builder.spec.parse import parse_spec


@pytest.mark.parametrize("method", ["calibrated", "gptq"])
def test_what_it_declares_is_accepted(method: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", scaled("tiny_dense", 1))
    file = tmp_path / "artifacts.toml"
    file.write_text(memory.declaration(base, method, 8, 64))
    for name in ("train.jsonl", "rendered.jsonl"):
        (tmp_path / name).touch()
    variant = parse_spec(file).variants["x"]
    assert variant.rounds_for_text == (method == "calibrated")
    made = variant.calibrated or variant.learned
    assert made is not None
    assert (made.samples, made.sequence_length) == (8, 64)


def test_ratios_are_of_equal_blocks_and_of_the_most_to_the_fewest() -> None:
    lines = [
        Line("calibrated", 12, 1.0, 1_000_000_000),
        Line("gptq", 24, 1.0, 4_000_000_000),
        Line("calibrated", 24, 1.0, 1_000_000_000),
        Line("calibrated", 48, 1.0, 1_180_000_000),
    ]
    assert memory.said(lines) == [
        "24 blocks: calibrated / gptq = 0.25",
        "calibrated: 48 / 12 blocks = 1.18, 5.0 MB for each block more",
    ]


def test_a_scaled_shape_differs_in_its_blocks_only() -> None:
    assert scaled("dense") == SHAPES["dense"]
    assert scaled("dense", 7).blocks == 7
    assert scaled("dense", 7).hidden == SHAPES["dense"].hidden
