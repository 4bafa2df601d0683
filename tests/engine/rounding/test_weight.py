"""Rounding of one weight: stock affine tensors, never worse than mx.quantize, on every path of the code."""

from __future__ import annotations

import os
from functools import cache
from itertools import pairwise

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from builder.engine.rounding import factors as factors_module
from builder.engine.rounding import weight as weight_module
from builder.engine.rounding.weight import Rounded, as_numpy, round_weight
from builder.spec.types import Quantization
from tests.conftest import fresh_python

Floats = npt.NDArray[np.float32]

SETTINGS = [Quantization(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
DTYPES = (mx.float16, mx.bfloat16, mx.float32)
ROWS, COLUMNS = 144, 256


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Floats:
    """A weight as models have them, with some outliers."""
    found = dice(seed).standard_normal((rows, columns)) * 0.02
    found[dice(seed + 1).random(found.shape) < 0.002] *= 8
    return found.astype(np.float32)


@cache
def moved_together(columns: int = COLUMNS, tokens: int = 2000) -> Floats:
    """The second moments of inputs that depend on one another."""
    rng = dice(7)
    mixed = np.eye(columns) + 0.1 * rng.standard_normal((columns, columns))
    inputs = rng.standard_normal((tokens, columns)) @ mixed * rng.uniform(0.2, 3, columns)
    return (inputs.T @ inputs / tokens).astype(np.float32)


def loss(made: Floats, weight: Floats, moments: Floats | None) -> float:
    """The squared error of the outputs. Without moments, that of the weights."""
    off = (made - weight).astype(np.float64)
    return float((off**2).sum() if moments is None else (off @ moments * off).sum())


def by_mlx(weight: Floats, how: Quantization, dtype: mx.Dtype) -> Floats:
    """What mx.quantize makes of a weight, computed in float32."""
    codes, scales, biases = mx.quantize(mx.array(weight).astype(dtype), how.group_size, how.bits)
    return unpacked(
        np.array(codes), np.array(scales.astype(mx.float32)), np.array(biases.astype(mx.float32)), how
    )


def unpacked(codes: npt.NDArray[np.uint32], scales: Floats, biases: Floats, how: Quantization) -> Floats:
    arrays = mx.array(codes), mx.array(scales), mx.array(biases)
    with mx.stream(mx.cpu):  # a GPU multiplies and adds in one step, with another last bit than numpy
        return np.array(mx.dequantize(*arrays, group_size=how.group_size, bits=how.bits))


def is_held(numbers: Floats, dtype: mx.Dtype) -> bool:
    return bool((np.array(mx.array(numbers).astype(dtype).astype(mx.float32)) == numbers).all())


def check_whole(made: Rounded, how: Quantization, dtype: mx.Dtype) -> None:
    """What must be true of every rounded weight."""
    assert np.isfinite(made.scales).all()
    assert np.isfinite(made.biases).all()
    assert (made.scales > 0).all()
    assert is_held(made.scales, dtype)
    assert is_held(made.biases, dtype)
    assert made.codes.max() < 2**how.bits
    assert (unpacked(made.packed(how.bits), made.scales, made.biases, how) == made.weight()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", SETTINGS, ids=lambda q: f"{q.bits}x{q.group_size}")
def test_a_weight_is_better_than_what_mlx_makes(how: Quantization, dtype: mx.Dtype) -> None:
    weight = np.array(mx.array(drawn()).astype(dtype).astype(mx.float32))
    for moments in (moved_together(), None):
        made = round_weight(weight, moments, how, dtype, compiled=True)
        check_whole(made, how, dtype)
        ours, theirs = (loss(each, weight, moments) for each in (made.weight(), by_mlx(weight, how, dtype)))
        assert ours < (0.7 if moments is not None else 0.99) * theirs


@pytest.mark.parametrize("how", SETTINGS[::2], ids=lambda q: f"{q.bits}x{q.group_size}")
def test_loops_and_mlx_agree(how: Quantization) -> None:
    dtype = DTYPES[(how.bits + how.group_size // 32) % 3]
    weight = drawn(columns=128)
    for moments in (moved_together(128), None):
        one, other = (
            round_weight(weight, moments, how, dtype, compiled=compiled) for compiled in (True, False)
        )
        check_whole(other, how, dtype)
        # Where sums of another order round one code otherwise, the columns that follow take up its error.
        assert (one.codes == other.codes).mean() >= 0.995
        assert (abs(one.codes.astype(int) - other.codes) <= 1 + 2**how.bits // 64).mean() >= 0.995
        assert loss(one.weight(), weight, moments) == pytest.approx(
            loss(other.weight(), weight, moments), rel=0.01
        )


def again_by_numpy(weight: Floats, moments: Floats, how: Quantization, made: Rounded) -> Floats:
    """One more choice of every code of the first group, written plainly: what the loops must find."""
    damped = moments.astype(np.float64) / moments.diagonal().mean(dtype=np.float64)
    damped += factors_module.DAMPING * np.eye(len(damped))
    codes = made.codes.astype(np.float64)
    errors = made.weight().astype(np.float64) - weight
    scales = np.repeat(made.scales.astype(np.float64), how.group_size, axis=1)
    for row in range(len(weight)):
        for j in range(how.group_size):
            best = codes[row, j] - (errors[row] @ damped[j]) / (damped[j, j] * scales[row, j])
            code = min(max(np.rint(best), 0), 2**how.bits - 1)
            errors[row, j] += (code - codes[row, j]) * scales[row, j]
            codes[row, j] = code
    return np.asarray(codes, np.float32)


@pytest.mark.parametrize("compiled", [True, False], ids=["loops", "mlx"])
def test_codes_that_are_chosen_again_are_those_of_plain_numpy(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, moments, how = drawn(20, 64), moved_together(64), Quantization(4, 64)
    monkeypatch.setattr(weight_module, "SWEEPS", 0)
    before = round_weight(weight, moments, how, mx.float32, compiled=compiled)
    monkeypatch.setattr(weight_module, "SWEEPS", 1)
    made = round_weight(weight, moments, how, mx.float32, compiled=compiled)
    expected = again_by_numpy(weight, moments, how, before)
    assert (expected != before.codes).any()
    assert (made.codes == expected).mean() > 0.995


def test_nothing_is_chosen_again_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = drawn(20, 64), moved_together(64)
    made = round_weight(weight, moments, FOUR, mx.float32, again=False)
    monkeypatch.setattr(weight_module, "SWEEPS", 0)
    assert (round_weight(weight, moments, FOUR, mx.float32).codes == made.codes).all()


@pytest.mark.parametrize("compiled", [True, False], ids=["loops", "mlx"])
@pytest.mark.parametrize("how", SETTINGS[::5], ids=lambda q: f"{q.bits}x{q.group_size}")
def test_no_sweep_makes_the_error_of_a_row_larger(
    how: Quantization, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, moments = drawn(30), moved_together()
    damped = moments + factors_module.DAMPING * moments.diagonal().mean() * np.eye(COLUMNS)
    losses = []
    for sweeps in (0, 1, 2, 5):
        monkeypatch.setattr(weight_module, "SWEEPS", sweeps)
        made = round_weight(weight, moments, how, DTYPES[how.bits % 3], compiled=compiled)
        check_whole(made, how, DTYPES[how.bits % 3])
        off = (made.weight() - weight).astype(np.float64)
        losses.append((off @ damped * off).sum(1))
    for before, after in pairwise(losses):
        assert (after <= before * 1.0001).all()
    assert losses[-1].sum() < 0.98 * losses[0].sum()


# -- corners -----------------------------------------------------------------------------------------------

FOUR = Quantization(4, 32)
BOTH = pytest.mark.parametrize("compiled", [True, False], ids=["loops", "mlx"])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def small_weight(rows: int = 5) -> Floats:
    return drawn(rows, 64, seed=3)


def small_moments() -> Floats:
    return moved_together(64)


def rounded(weight: Floats, moments: Floats | None, dtype: mx.Dtype, compiled: bool) -> Floats:
    made = round_weight(weight, moments, FOUR, dtype, compiled=compiled)
    check_whole(made, FOUR, dtype)
    assert np.isfinite(made.weight()).all()
    return made.weight()


@BOTH
@EACH_DTYPE
def test_equal_values_and_zeros_are_kept(compiled: bool, dtype: mx.Dtype) -> None:
    weight = small_weight()
    weight[0] = 0
    weight[1] = -0.375
    weight[2, :32] = 0.5
    made = rounded(weight, None, dtype, compiled)
    assert (made[:2] == weight[:2]).all()
    assert (made[2, :32] == 0.5).all()
    made = rounded(weight, small_moments(), dtype, compiled)
    assert (made[:2] == weight[:2]).all()
    assert (made[2, :32] == 0.5).all()


@BOTH
@EACH_DTYPE
@pytest.mark.parametrize(
    "size", [0.0, 1e-42, 1e-38, 1e-30, 1e-8, 3e-7, 1e-6, 1e-3, 1.0, 3e3, 1e9, 1e18, 1e30]
)
def test_weights_of_any_size(size: float, dtype: mx.Dtype, compiled: bool) -> None:
    if dtype == mx.float16 and size > 1e4:
        return
    weight = (small_weight() / 0.2 * size).astype(np.float32)
    weight = np.array(mx.array(weight).astype(dtype).astype(mx.float32))
    for moments in (small_moments(), None):
        made = rounded(weight, moments, dtype, compiled)
        if 1e-30 <= size <= 1e15:
            assert loss(made, weight, moments) <= loss(by_mlx(weight, FOUR, dtype), weight, moments)


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_only_the_ratios_of_moments_count(scale: float, compiled: bool) -> None:
    weight, moments = small_weight(), small_moments()
    expected = rounded(weight, moments, mx.float32, compiled)
    made = rounded(weight, (moments.astype(np.float64) * scale).astype(np.float32), mx.float32, compiled)
    assert loss(made, weight, moments) == pytest.approx(loss(expected, weight, moments), rel=0.01)


def inputs(kind: str) -> Floats:
    """Inputs [tokens, 64] of which some columns are special."""
    found = dice(5).standard_normal((200, 64)).astype(np.float32)
    if kind == "dead columns":
        found[:, ::3] = 0
    elif kind == "all but one dead":
        found[:, 1:] = 0
    elif kind == "huge columns":
        found[:, [3, 40]] *= 1e4
    elif kind == "tiny columns":
        found[:, 5:30] *= 1e-15
    elif kind == "fewer tokens than columns":
        found = found[:5]
    elif kind == "one token":
        found = found[:1]
    elif kind == "equal columns":
        found[:] = found[:, :1]
    elif kind == "huge and equal":
        found[:] = 1e15 * found[:, :1]
    return found


KINDS = ["dead columns", "all but one dead", "huge columns", "tiny columns", "fewer tokens than columns",
         "one token", "equal columns", "huge and equal"]  # fmt: skip


@BOTH
@pytest.mark.parametrize("exact", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_any_kind(kind: str, exact: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:  # as for weights of more columns
        monkeypatch.setattr(factors_module, "_EXACT", 0)
    weight, given = small_weight(), inputs(kind)
    moments = (given.T @ given / len(given)).astype(np.float32)
    for dtype in DTYPES:
        made = rounded(weight, moments, dtype, compiled)
        assert loss(made, weight, moments) < loss(by_mlx(weight, FOUR, dtype), weight, moments)


@BOTH
def test_moments_that_rounding_made_indefinite(compiled: bool) -> None:
    weight = small_weight()
    moments = small_moments() - 0.05 * np.trace(small_moments()) / 64 * np.eye(64, dtype=np.float32)
    assert np.linalg.eigvalsh(moments).min() < 0
    assert loss(rounded(weight, moments, mx.bfloat16, compiled), weight, None) < 1


def test_moments_that_cannot_be_repaired_do_not_matter() -> None:
    weight = small_weight()
    made = rounded(weight, -small_moments(), mx.bfloat16, True)
    assert loss(made, weight, None) < 2 * loss(by_mlx(weight, FOUR, mx.bfloat16), weight, None)


@BOTH
@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 300])
def test_rows_do_not_depend_on_one_another(rows: int, compiled: bool) -> None:
    weight, moments = small_weight(300), small_moments()
    whole = rounded(weight, moments, mx.float16, compiled)
    some = rounded(weight[:rows], moments, mx.float16, compiled)
    if compiled:
        assert loss(some, weight[:rows], moments) == pytest.approx(
            loss(whole[:rows], weight[:rows], moments), rel=0.01
        )
    assert (some == whole[:rows]).mean() > 0.99


def test_pieces_are_packed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = round_weight(drawn(10, 64), None, Quantization(3, 32), mx.float16)
    whole = made.packed(3)
    monkeypatch.setattr(weight_module, "_PIECE", 4)
    assert (made.packed(3) == whole).all()
    assert whole.shape == (10, 6)


@pytest.mark.parametrize("cores", [1, 2, 7, None])
def test_the_number_of_cores_changes_nothing(cores: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(700, 128)
    expected = round_weight(weight, moved_together(128), FOUR, mx.float16, compiled=True)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    made = round_weight(weight, moved_together(128), FOUR, mx.float16, compiled=True)
    assert (made.codes == expected.codes).all()
    assert (made.scales == expected.scales).all()
    assert (made.biases == expected.biases).all()


DIGEST = """
import hashlib, sys
import mlx.core as mx, numpy as np
from builder.engine.blas import _numpys_openblas
from builder.engine.rounding.weight import round_weight
from builder.spec.types import Quantization

if library := _numpys_openblas():
    library.scipy_openblas_set_num_threads64_(int(sys.argv[1]))
rng = np.random.default_rng(0)
weight = rng.standard_normal((300, 2048)).astype(np.float32)
inputs = rng.integers(-3, 4, (1500, 2048)).astype(np.float32)  # integers: any sum of products is exact
moments = inputs.T @ inputs / 1500
made = round_weight(weight, moments, Quantization(4, 64), mx.bfloat16, compiled=True)
print(hashlib.sha256(made.codes.tobytes() + made.scales.tobytes() + made.biases.tobytes()).hexdigest())
if library:
    assert library.scipy_openblas_get_num_threads64_() == int(sys.argv[1])
"""


@pytest.mark.slow
def test_the_number_of_threads_of_numpy_changes_nothing() -> None:
    assert fresh_python(DIGEST, "1") == fresh_python(DIGEST, "2")


@EACH_DTYPE
def test_a_weight_in_the_stored_dtype_is_rounded_as_its_float32_copy(dtype: mx.Dtype) -> None:
    weight = mx.array(drawn(20, 64)).astype(dtype)
    given = as_numpy(weight)
    assert given.itemsize == weight.itemsize
    copy = np.array(weight.astype(mx.float32))
    one, other = (round_weight(each, moved_together(64), FOUR, dtype) for each in (given, copy))
    assert (one.codes == other.codes).all()
    assert (one.scales == other.scales).all()
    assert (one.biases == other.biases).all()


def test_the_weight_that_is_given_is_not_changed() -> None:
    weight = drawn(200, 128)
    before = weight.copy()
    for compiled in (True, False):
        round_weight(weight, moved_together(128), FOUR, mx.float16, compiled=compiled)
        assert (weight == before).all()
