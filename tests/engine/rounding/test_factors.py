"""The factors of moments: an inverse by halves, shared by weights that are given the same inputs."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.rounding import factors as factors_module
from builder.engine.rounding.factors import DAMPING, factored, factors_of
from builder.engine.rounding.moments import Floats, Sum


def moments(columns: int, seed: int = 0) -> Floats:
    inputs = np.random.default_rng(seed).standard_normal((2 * columns, columns))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 64, 256, 257, 771])
def test_a_factor_is_that_of_the_inverse(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = moments(columns)
    mean = known.diagonal().mean()
    damped = (known / mean).astype(np.float64) + DAMPING * np.eye(columns)
    for exact in (4096, 0):  # in float64, and in float32
        monkeypatch.setattr(factors_module, "_EXACT", exact)
        found = factors_of(known, columns)
        assert found.factor is not None
        assert (np.tril(found.factor, -1) == 0).all()
        factor = found.factor.astype(np.float64)
        assert np.abs(factor.T @ factor @ damped - np.eye(columns)).max() < (1e-5 if exact else 1e-2)
        assert found.importance == pytest.approx(1 / factor.diagonal() ** 2, rel=1e-5)


def test_factors_come_in_order_and_the_same_inputs_are_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, output, query and value, as they stand in a layer, and a weight that no text reaches."""
    one, other = Sum(mx.array(moments(64)), 1), Sum(mx.array(moments(64, seed=1)), 1)
    asked: list[Floats | None] = []

    def counted(known: Floats | None, columns: int) -> factors_module.Factors:
        asked.append(known)
        return factors_of(known, columns)

    monkeypatch.setattr(factors_module, "factors_of", counted)
    given = [(one.copy(), 64), (other, 64), (one.copy(), 64), (one.copy(), 64), (None, 32), (Sum(), 32)]
    found = list(factored(given))
    assert len(asked) == 4
    expected = [factors_of(known.mean if known else None, columns) for known, columns in given]
    for made, wanted in zip(found, expected, strict=True):
        assert (made.importance == wanted.importance).all()
        assert (made.factor is None) == (wanted.factor is None)
        if made.factor is not None:
            assert (made.factor == wanted.factor).all()
    assert found[0] is found[2] is found[3]


def test_one_factor_is_made_ahead_and_no_more() -> None:
    asked: list[int] = []

    def given() -> Iterator[tuple[Sum | None, int]]:
        for number in range(5):
            asked.append(number)
            yield Sum(mx.array(moments(32, seed=number)), 1), 32

    made = factored(given())
    for number in range(4):
        next(made)
        assert asked == list(range(number + 2))


def test_an_error_reaches_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(known: Floats | None, columns: int) -> factors_module.Factors:
        raise MemoryError

    monkeypatch.setattr(factors_module, "factors_of", failing)
    with pytest.raises(MemoryError):
        next(factored([(None, 32)]))
