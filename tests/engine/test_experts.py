"""Products with stored weights give what mlx gives, whatever the weights are stored as."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from builder.engine import stored
from builder.engine.blas import numpy_on_one_thread
from builder.engine.experts import by_expert, by_matrix, gated
from builder.engine.stored import Stored, stored_in, stored_under

EXPERTS, WIDE, COLUMNS = 5, 96, 64
SETTINGS: tuple[tuple[str, int, int] | None, ...] = (
    None, ("affine", 4, 32), ("affine", 5, 64), ("affine", 8, 64), ("mxfp4", 4, 32), ("nvfp4", 4, 16),
)  # fmt: skip


def stack(dtype: Any, how: tuple[str, int, int] | None) -> tuple[Stored, mx.array]:
    """A stack of experts, and its weight in float32 by mlx."""
    from mlx_lm.models.switch_layers import SwitchLinear

    module: Any = SwitchLinear(COLUMNS, WIDE, EXPERTS, bias=False)
    module.weight = module.weight.astype(dtype)
    if how is None:
        return stored_in(module), module.weight.astype(mx.float32)
    mode, bits, group = how
    module = module.to_quantized(group, bits, mode)
    parts = (module.weight, module.scales, module.get("biases"))
    whole = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode)
    return stored_in(module), whole.astype(mx.float32)


def close(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.allclose(one, other, rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_product_of_mlx(
    dtype: Any, how: tuple[str, int, int] | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(stored, "available", lambda dtype: False)
        monkeypatch.setattr(stored, "dequantize_agrees", lambda *_: False)
    weight, whole = stack(dtype, how)
    calls = [
        (mx.random.normal((2, 7, 1, 1, COLUMNS)), mx.random.randint(0, EXPERTS, (2, 7, 3))),  # a gate, up
        (mx.random.normal((2, 7, 3, 1, COLUMNS)), mx.random.randint(0, EXPERTS, (2, 7, 3))),  # down
        (mx.random.normal((30, 1, COLUMNS)), mx.sort(mx.random.randint(0, EXPERTS - 2, (30,)))),  # sorted
    ]
    with numpy_on_one_thread():
        made = by_expert(calls, weight)
        for (x, indices), ours in zip(calls, made, strict=True):
            assert close(ours, mx.gather_mm(x, whole.swapaxes(-1, -2), rhs_indices=indices))
        one = Stored(*(each[0] for each in weight.arrays), setting=weight.setting, mode=weight.mode)
        monkeypatch.setattr("builder.engine.experts.PIECE", 7 * COLUMNS)  # 96 rows are not a multiple of 7
        inputs = [mx.random.normal((2, 5, COLUMNS)), mx.random.normal((3, COLUMNS))]
        for x, ours in zip(inputs, by_matrix(inputs, one), strict=True):
            assert close(ours, x @ whole[0].T)
        assert close(one.looked_up(mx.array([[3, 0], [95, 3]])), whole[0][mx.array([[3, 0], [95, 3]])])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_a_lora_is_added_as_mlx_fuses_it(dtype: Any) -> None:
    from mlx_lm.models.switch_layers import SwitchLinear
    from mlx_lm.tuner.lora import LoRASwitchLinear

    module: Any = SwitchLinear(COLUMNS, WIDE, EXPERTS, bias=False)
    module.weight = module.weight.astype(dtype)
    layer = LoRASwitchLinear.from_base(module, r=3, scale=2.5)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    weight = stored_under(layer)
    assert weight is not None and stored_under(module) is None
    call = (mx.random.normal((40, 1, COLUMNS)), mx.random.randint(0, EXPERTS, (40,)))
    with numpy_on_one_thread():
        (ours,) = by_expert([call], weight)
    fused = layer.fuse().weight.astype(mx.float32)
    assert close(ours, mx.gather_mm(call[0], fused.swapaxes(-1, -2), rhs_indices=call[1]))


def test_a_gate_is_multiplied_as_by_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models.switch_layers import SwiGLU

    monkeypatch.setattr("builder.engine.experts._GATED", 100)
    ramp = mx.linspace(-200, 200, 960).reshape(2, 3, 160)  # the exponential overflows at both ends
    calls = [(mx.random.normal(ramp.shape), ramp), (mx.random.normal((5, 7)), mx.random.normal((5, 7)))]
    for (x, gate), ours in zip(calls, gated(calls), strict=True):
        assert close(ours, SwiGLU()(x, gate))


def test_the_same_bits_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = stack(mx.bfloat16, ("affine", 5, 64))
    call = (mx.random.normal((200, 1, COLUMNS)), mx.random.randint(0, EXPERTS, (200,)))
    with numpy_on_one_thread():
        made = []
        for number in (1, 2, 3):
            monkeypatch.setattr(stored, "cores", lambda number=number: number)
            made += by_expert([call], weight)
    assert mx.array_equal(made[0], made[1]) and mx.array_equal(made[0], made[2])
