"""Stacks of weights, as a GPU rounds them: each as if it was alone, in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.rounding import shard, stacks
from builder.engine.rounding.factors import factored
from builder.engine.rounding.moments import Sum
from builder.engine.rounding.stacks import packed, round_stack
from builder.engine.rounding.weight import SWEEPS, Rounded, round_weight
from builder.spec.types import Quantization
from tests.engine.rounding.test_weight import Floats, drawn, loss, moved_together

FOUR = Quantization(4, 32)


def test_each_weight_of_a_stack_is_rounded_as_if_it_was_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [drawn(20, 64, seed=seed) for seed in range(5)]
    moments = [moved_together(64), 3 * moved_together(64) + np.eye(64, dtype=np.float32), None, None]
    moments.append(moved_together(64))
    alone = [
        round_weight(weight, known, FOUR, mx.bfloat16, compiled=False)
        for weight, known in zip(weights, moments, strict=True)
    ]
    for rows, factors in ((2**15, 2**26), (16, 2 * 64**2)):  # all at once, and in pieces of 3 to 8 rows
        monkeypatch.setattr(stacks, "_ROWS", rows)
        monkeypatch.setattr(stacks, "_FACTORS", factors)
        made = round_stack(mx.array(np.stack(weights)), iter(moments), FOUR, mx.bfloat16, SWEEPS)
        for number, (weight, known, one) in enumerate(zip(weights, moments, alone, strict=True)):
            arrays = (made.codes[number], made.scales[number], made.biases[number])
            other = Rounded(*(np.array(each) for each in arrays))
            assert (one.codes == other.codes).mean() > 0.995
            assert loss(other.weight(), weight, known) == pytest.approx(
                loss(one.weight(), weight, known), rel=0.01
            )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_as_mlx_packs_them(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = round_weight(drawn(10, 64), None, Quantization(bits, 32), mx.float16)
    monkeypatch.setattr(stacks, "_PACKED", 3 * 64)  # three rows at a time
    assert (np.array(packed(mx.array(made.codes), bits)) == made.packed(bits)).all()
    stack = mx.array(made.codes).reshape(2, 5, 64)
    assert packed(stack, bits).shape == (2, 5, 2 * bits)


def test_a_block_is_rounded_as_on_a_gpu() -> None:
    """The tensors of a stack of experts: the same shapes, and the same error, as by the loops."""
    weight = mx.array(np.stack([drawn(24, 64, seed=seed) for seed in range(3)])).astype(mx.bfloat16)

    def inputs() -> Iterator[Floats | None]:
        yield from (moved_together(64), None, moved_together(64))

    def sums() -> Iterator[tuple[Sum | None, int]]:
        yield from ((None if known is None else Sum(mx.array(known), 1), 64) for known in inputs())

    one = shard._by_loops(factored(sums()), weight, FOUR, True)
    other = shard._by_mlx(sums(), weight, FOUR, True)
    assert [(array.shape, array.dtype) for array in one] == [(array.shape, array.dtype) for array in other]
    exact = np.array(weight.astype(mx.float32))
    for number, known in enumerate(inputs()):
        losses = [
            loss(np.array(mx.dequantize(*each, group_size=32, bits=4)[number]), exact[number], known)
            for each in (one, other)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.01)
