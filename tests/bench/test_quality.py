"""The arithmetic of KL at equal bytes, and the declarations of the benchmark that measures it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench import quality, quality_models
from bench.frontier import Measured, below_line, compared, line
from bench.inputs import Shape
from builder.spec.parse import parse_spec

SIZES = (300, 400, 500, 600)
UNIFORM = (1.6, 0.4, 0.1, 0.025)  # a quarter for each 100 bytes


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (300, 1.6),
        (400, 0.4),
        (600, 0.025),
        (450, 0.2),  # in the middle, the geometric mean
        (425, 0.4 * 0.25**0.25),
        (200, 6.4),  # outside, the nearest segment goes on
        (700, 0.00625),
    ],
)
def test_the_line_is_straight_in_bytes_and_the_logarithm(nbytes: int, expected: float) -> None:
    assert line(SIZES, UNIFORM, nbytes) == pytest.approx(expected)


def test_the_line_goes_through_every_uniform_size() -> None:
    bent = (1.6, 0.5, 0.09, 0.03)
    assert [float(line(SIZES, bent, size)) for size in SIZES] == pytest.approx(bent)


def test_many_lines_at_once_are_the_lines_one_by_one() -> None:
    many = np.random.default_rng(3).uniform(0.1, 1, (5, 4))
    assert line(SIZES, many, 444) == pytest.approx([float(line(SIZES, one, 444)) for one in many])


@pytest.mark.parametrize("sizes", [(300,), (300, 300), (400, 300)])
def test_a_line_needs_sizes_that_grow(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="grow"):
        line(sizes, UNIFORM[: len(sizes)], 350)


def test_a_divergence_of_zero_has_a_line() -> None:
    assert math.isfinite(float(line((300, 400), (1.0, 0.0), 350)))


def rows(mean: float, seed: int) -> list[float]:
    drawn = np.random.default_rng(seed).exponential(1.0, 120)
    return [float(each) for each in drawn / drawn.mean() * mean]


def uniform(seed: int = 0) -> list[Measured]:
    return [Measured(size, rows(kl, seed)) for size, kl in zip(SIZES, UNIFORM, strict=True)]


def test_the_ratio_is_that_of_the_means_and_lies_in_its_interval() -> None:
    found = below_line(Measured(450, rows(0.08, seed=9)), uniform())
    assert found.value == pytest.approx(0.4)
    assert found.low < found.value < found.high


def test_draws_are_paired() -> None:
    """Rows that are hard for all variants alike do not widen the interval: here the ratio never changes."""
    found = below_line(Measured(450, rows(0.08, seed=0)), uniform(seed=0))
    assert (found.low, found.high) == pytest.approx((0.4, 0.4))


def test_a_uniform_variant_lies_on_its_own_line() -> None:
    for each in uniform():
        found = below_line(each, uniform())
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_same_seed_gives_the_same_interval_whatever_the_order() -> None:
    one = Measured(450, rows(0.08, seed=9))
    assert below_line(one, uniform(), seed=4) == below_line(one, uniform()[::-1], seed=4)
    assert below_line(one, uniform(), seed=4) != below_line(one, uniform(), seed=5)


def test_two_variants_are_compared_by_rows() -> None:
    one, other = Measured(1, rows(0.2, seed=1)), Measured(1, rows(0.4, seed=1))
    assert compared(one, other).value == pytest.approx(0.5)
    assert compared(one, other).high == pytest.approx(0.5)


def test_rows_of_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        below_line(Measured(450, [0.1]), uniform())


@pytest.mark.parametrize("model", ["example", "base"])
def test_everything_that_the_benchmark_declares_is_accepted(tmp_path: Path, model: str) -> None:
    file = tmp_path / "artifacts.toml"
    for name in ("train.jsonl", "rendered.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    shutil.copy(quality_models.ROOT / "dodo.py", tmp_path)
    tables = quality_models.sources(model, tmp_path)
    file.write_text(quality.declaration(model, list(quality.VARIANTS), tables))
    spec = parse_spec(file)
    names = {target.name for target in spec.targets}
    assert names == {"m_f16", *(f"m_{quality.plain_name(variant)}" for variant in quality.VARIANTS)}


@pytest.mark.parametrize(
    ("only", "more"),
    [
        (["calibrated_4"], ["calibrated_4"]),
        (["target", "awq"], ["target_4.25", "target_4.7", "target_5.0", "awq"]),
        (["uniform"], []),
        (["tuned_target"], ["target_4.7", "tuned_target_4.7"]),
    ],
)
def test_the_uniform_variants_are_always_measured(only: list[str], more: list[str]) -> None:
    assert quality.chosen(only) == ["uniform_3", "uniform_4", "uniform_5", "uniform_6", *more]


def test_without_names_everything_is_measured() -> None:
    assert quality.chosen([]) == list(quality.VARIANTS)


def test_a_mixture_of_experts_is_trained_from_a_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = Shape(1, 64, 64, heads=1, kv_heads=1, head_dim=64, vocabulary=512, tied=False, experts=2)
    how = quality_models.Training(steps=3, batch=2)
    one, other = (quality_models.trained(tmp_path / name, shape, how) for name in ("one", "other"))
    weights = [mx.load(str(folder / "model.safetensors")) for folder in (one, other)]
    assert all(mx.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    before = (one / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    quality_models.trained(one, shape, how)
    assert (one / "model.safetensors").stat().st_mtime_ns == before
    assert not capsys.readouterr().out
    text = quality_models.rendered(one, quality_models.TRAIN)[0]
    first = json.loads(quality_models.TRAIN.read_text().splitlines()[0])["messages"]
    assert text.endswith(f"assistant: {first[-1]['content']}<|eos|>\n")


def test_methods_of_mlx_lm_get_the_first_texts_and_an_eighth_more() -> None:
    class Letters:
        def encode(self, text: str) -> list[str]:
            return list(text)

    texts = ["abcdefgh"] * 10
    assert len(quality.first_of(texts, Letters(), samples=7, length=4)) == 5  # 7 + 1 + 1 pieces
    assert quality.first_of(texts, Letters(), samples=32, length=4) == texts
