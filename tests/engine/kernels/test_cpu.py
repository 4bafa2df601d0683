"""The compiled kernels give, bit for bit, what mlx gives on CPU."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
import mlx.core as mx

from builder.engine.kernels import agreement, compiled, processor
from builder.engine.kernels import cpu as kernels
from builder.engine.kernels.cpu import SETTINGS, NonFinite, quantize_widths
from builder.engine.kernels.lora import factors, fuse_lora, fuse_whole

DTYPES = ["bfloat16", "float16", "float32"]
ALL = sorted(SETTINGS)


@pytest.fixture(autouse=True)
def on_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def stored(array: mx.array) -> np.ndarray[Any, Any]:
    return np.array(array.view(mx.uint16) if array.dtype in (mx.bfloat16, mx.float16) else array)


def as_mx(raw: np.ndarray[Any, Any], dtype: str) -> mx.array:
    array = mx.array(raw)
    return array if dtype == "float32" else array.view(getattr(mx, dtype))


def random_weights(dtype: str, *shape: int, seed: int = 0, std: float = 0.02) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(std)
    return stored(mx.array(values).astype(getattr(mx, dtype)))


def assert_exact(
    raw: np.ndarray[Any, Any], dtype: str, settings: list[tuple[int, int]], threads: int = 1
) -> None:
    for (bits, group), ours in zip(
        settings, quantize_widths(raw, dtype, settings, threads=threads), strict=True
    ):
        theirs = mx.quantize(as_mx(raw, dtype), group_size=group, bits=bits)
        for name, its in zip(("weight", "scales", "biases"), theirs, strict=True):
            mine, expected = getattr(ours, name), stored(its)
            assert mine.dtype == expected.dtype and mine.shape == expected.shape
            assert mine.tobytes() == expected.tobytes(), (bits, group, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 128), (3, 384), (37, 1152), (5, 7, 256), (2, 640)])
def test_every_setting_matches_mlx(dtype: str, shape: tuple[int, ...]) -> None:
    assert_exact(random_weights(dtype, *shape), dtype, ALL)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_weights_match_mlx(dtype: str) -> None:
    assert agreement.agreeing(dtype, quantize_widths) == SETTINGS
    assert agreement.verify(dtype) == SETTINGS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_any_finite_bit_pattern_matches_mlx(dtype: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    unsigned = np.uint32 if dtype == "float32" else np.uint16
    raw = draw.integers(0, np.iinfo(unsigned).max, (64, 1280), unsigned, endpoint=True)
    raw[draw.random(raw.shape) < (0.0, 0.1, 0.5, 0.95)[seed]] = 0
    infinity = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[dtype]
    raw[(raw & infinity) == infinity] = 1
    assert_exact(raw.view(np.float32) if dtype == "float32" else raw, dtype, ALL)


@pytest.mark.parametrize("std", [1e-8, 1e-4, 1.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_magnitude_matches_mlx(dtype: str, std: float) -> None:
    assert_exact(random_weights(dtype, 64, 512, std=std, seed=3), dtype, ALL)


@pytest.mark.parametrize("std", [1e17, 1e19, 1e30, 3e37])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_too_large_for_an_inverse_match_mlx(dtype: str, std: float) -> None:
    assert_exact(random_weights(dtype, 64, 512, std=std, seed=3), dtype, ALL)


@pytest.mark.skipif(not processor.is_wide(), reason="the loops divide on this CPU")
def test_the_quotient_from_an_inverse_is_that_of_a_division() -> None:
    import numba

    from builder.engine.kernels import jitted

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def wrong(values: Any, scales: Any) -> int:
        found = 0
        for value, scale in zip(values, scales):  # noqa: B905 - numba has no strict
            inverse = np.float32(1) / scale
            rest = jitted._multiply_add(-inverse, scale, np.float32(1)) * inverse
            found += jitted._quotient(value, scale, inverse, rest) != value / scale
        return found

    draw, many = np.random.default_rng(0), 1 << 20
    odd = draw.integers(1 << 22, 1 << 23, many, np.uint64) * 2 + 1  # 24 bits
    whole = np.uint64((1 << 25) - 1)
    reciprocal = odd.copy()
    for _ in range(5):  # modulo 2 ** 25, each step doubles the bits that are right (Newton)
        reciprocal = reciprocal * (2 - reciprocal * odd) & whole
    below, above = reciprocal, whole + 1 - reciprocal
    for middle, value in ((below, odd * below - 1), (above, odd * above + 1)):
        assert not (value & whole).any()  # value / odd is as near to `middle` as a quotient can be
        between = middle > whole // 2  # two floats
        quotients = (value >> np.uint64(25))[between].astype(np.float32), odd[between].astype(np.float32)
        assert len(quotients[0]) > many // 4 and wrong(*quotients) == 0
        assert wrong(quotients[0] * np.float32(2.0**-40), -quotients[1] * np.float32(2.0**-70)) == 0
    values, scales = (draw.integers(1 << 23, 1 << 24, many).astype(np.float32) for _ in range(2))
    assert wrong(values, scales) == 0


@pytest.mark.parametrize("group", [32, 64])
def test_last_chunk_may_be_any_number_of_groups(group: int) -> None:
    for groups in (1, 2, 3, 63, 64, 65, 129):
        assert_exact(
            random_weights("bfloat16", groups, group), "bfloat16", [(b, group) for b in kernels.BITS]
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dequantized_as_by_mlx(dtype: str) -> None:
    for setting in SETTINGS:
        assert agreement.dequantize_agrees(dtype, setting), setting
    rows = kernels.quantize_widths(agreement.hard_weights(dtype), dtype, [(5, 64)])[0]
    out = np.empty((rows.weight.shape[0], 256), np.float32)
    with pytest.raises(ValueError, match="no kernel for 4 bits"):
        kernels.dequantize_into(out, rows.weight, rows.scales, rows.biases, dtype=dtype, setting=(4, 64))


def test_a_wrong_dequantization_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement.dequantize_into

    def wrong(out: Any, *arrays: Any, **how: Any) -> None:
        right(out, *arrays, **how)
        if how["setting"] == (5, 64):
            out[3, 7] = np.nextafter(out[3, 7], np.float32(9))

    monkeypatch.setattr(agreement, "dequantize_into", wrong)
    agreement._dequantized_alike.cache_clear()
    try:
        assert agreement._dequantized_alike("bfloat16") == SETTINGS - {(5, 64)}
    finally:
        agreement._dequantized_alike.cache_clear()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_widened_as_by_mlx(dtype: str) -> None:
    weight = agreement.hard_weights(dtype)
    out = np.empty(weight.shape, np.float32)
    kernels.widen_into(out, weight, dtype)
    assert np.array_equal(out, np.array(mx.array(weight).view(getattr(mx, dtype)).astype(mx.float32)))


def test_pieces_and_threads_do_not_change_a_bit() -> None:
    raw = random_weights("bfloat16", 3, 520, 1024)
    assert raw.size > 3 * kernels.PIECE
    settings = [(4, 64), (5, 32), (6, 128), (8, 64), (4, 64)]
    assert_exact(raw, "bfloat16", settings, threads=2)
    before = random_weights("bfloat16", 3, 520, 1024, seed=1)
    one, two = (quantize_widths(raw, "bfloat16", settings, threads=n, original=before) for n in (1, 2))
    assert [result.loss for result in one] == [result.loss for result in two]


def test_inputs_may_be_strided_or_read_only() -> None:
    raw = random_weights("float16", 256, 256)
    assert_exact(raw.T, "float16", [(4, 64)])
    assert_exact(raw[::2, :128], "float16", [(5, 32)])
    raw.flags.writeable = False
    assert_exact(raw, "float16", [(3, 64)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_is_what_dequantizing_gives(dtype: str) -> None:
    before = random_weights(dtype, 40, 512)
    values = as_mx(before, dtype).astype(mx.float32) + 0.002 * mx.random.normal(
        (40, 512), key=mx.random.key(0)
    )
    array = values.astype(getattr(mx, dtype))
    for (bits, group), ours in zip(
        ALL, quantize_widths(stored(array), dtype, ALL, original=before), strict=True
    ):
        restored = mx.dequantize(
            *mx.quantize(array, group_size=group, bits=bits), group_size=group, bits=bits
        )
        weight = np.array(array.astype(mx.float32)).astype(np.float64)
        error = np.array(restored.astype(mx.float32)) - weight
        delta = weight - np.array(as_mx(before, dtype).astype(mx.float32))
        expected = [(error**2).sum(), (error * delta).sum(), (delta**2).sum()]
        assert ours.loss is not None
        scale = np.sqrt(expected[0] * expected[2])
        assert np.allclose(dataclasses.astuple(ours.loss), expected, rtol=1e-5, atol=1e-6 * scale), (
            bits,
            group,
        )


def test_without_original_nothing_is_measured() -> None:
    assert quantize_widths(random_weights("bfloat16", 2, 64), "bfloat16", [(4, 64)])[0].loss is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (8, 513), (8, 1023)])
def test_non_finite_weights_are_refused(dtype: str, value: float, at: tuple[int, int]) -> None:
    values = np.full((9, 1024), 0.5, np.float32)
    values[at] = value
    with pytest.raises(NonFinite):
        quantize_widths(stored(mx.array(values).astype(getattr(mx, dtype))), dtype, [(4, 64)], threads=2)


def test_wrong_calls_are_refused() -> None:
    raw = random_weights("bfloat16", 4, 96)
    for arguments, message in [
        ((raw, "bfloat16", [(4, 64)]), "96 columns are not a multiple of the group size 64"),
        ((raw, "bfloat16", [(7, 32)]), "no kernel for 7 bits in groups of 32"),
        ((raw, "int8", [(4, 32)]), "no kernel for int8"),
        ((raw, "float32", [(4, 32)]), "float32 weights of 2 or 3 dimensions, not uint16 of 2"),
        ((raw[0], "bfloat16", [(4, 32)]), "bfloat16 weights of 2 or 3 dimensions, not uint16 of 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize_widths(*arguments)
    with pytest.raises(ValueError, match="original has shape"):
        quantize_widths(raw, "bfloat16", [(4, 32)], original=raw[:2])
    assert quantize_widths(raw, "bfloat16", []) == []


def broken(change: Any) -> Any:
    """`quantize_widths` whose 5-bit results went through `change`."""

    def quantize(raw: Any, dtype: str, settings: Any) -> Any:
        results = quantize_widths(raw, dtype, settings)
        return [change(r) if bits == 5 else r for (bits, _), r in zip(settings, results, strict=True)]

    return quantize


def test_verify_finds_a_single_wrong_bit() -> None:
    def flip(result: Any) -> Any:
        result.weight.reshape(-1)[-1] ^= 1 << 31
        return result

    def flip_bias(result: Any) -> Any:
        result.biases.reshape(-1)[len(result.biases)] ^= 1
        return result

    good = frozenset((bits, group) for bits, group in SETTINGS if bits != 5)
    for change in (flip, flip_bias, lambda r: dataclasses.replace(r, weight=r.weight[:-1])):
        assert agreement.agreeing("bfloat16", broken(change)) == good


EVEN = frozenset((bits, group) for bits, group in SETTINGS if bits in (2, 4, 8))  # what `nearly` can pack


@pytest.mark.parametrize(
    ("wrong", "survivors"),
    [("nothing", EVEN), ("half up", set()), ("half away", set()), ("eps", set()), ("edge", set())],
)
def test_verify_finds_nearly_right_arithmetic(wrong: str, survivors: set[Any]) -> None:
    def quantize(raw: Any, dtype: str, settings: Any) -> Any:
        return [nearly(raw, bits, group, wrong) for bits, group in settings]

    assert agreement.agreeing("float32", quantize) == survivors


def nearly(values: Any, bits: int, group: int, wrong: str) -> kernels.QuantizedArrays:
    """mx.quantize of float32 in numpy, for widths that divide 32, with one thing `wrong`."""
    tile = values.reshape(values.shape[0], -1, group)
    low, high, top = tile.min(-1), tile.max(-1), np.float32(2**bits - 1)
    with np.errstate(all="ignore"):
        scale = np.maximum((high - low) / top, np.float32(1e-8 if wrong == "eps" else 1e-7))
        negative = abs(low) > abs(high)
        scale = np.where(negative, scale, -scale)
        edge = np.where(negative, low, high)
        count = np.rint(edge / scale)
        used = (count != 0) & (wrong != "edge")
        scale = np.where(used, edge / np.where(used, count, np.float32(1)), scale)
        bias = np.where(used, edge, np.float32(0))
        steps = (tile - bias[..., None]) / scale[..., None]
        half = np.float32(0.5)
        if wrong == "half up":
            steps = np.floor(steps + half)
        elif wrong == "half away":
            steps = np.trunc(steps + np.copysign(half, steps))
        codes = np.clip(np.nan_to_num(np.rint(steps)), 0, top).astype(np.uint32)  # 0 / 0 is step 0
    if 32 % bits:
        return kernels.QuantizedArrays(codes, scale, bias)
    fields = codes.reshape(len(values), -1, 32 // bits) << (
        np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    )
    return kernels.QuantizedArrays(fields.sum(-1, dtype=np.uint32), scale, bias)


def lora(dtype: str, layout: str, rows: int, rank: int, columns: int, seed: int = 0) -> tuple[Any, ...]:
    draw = np.random.default_rng(seed)
    shapes = {
        "linear": ((rows, columns), (columns, rank), (rank, rows)),
        "switch": ((3, rows, columns), (3, rank, columns), (3, rows, rank)),
        "embedding": ((rows, columns), (rows, rank), (rank, columns)),
    }[layout]
    weight, a, b = (draw.standard_normal(shape, np.float32) for shape in shapes)
    b[..., : rank // 2] = 0  # a fresh adapter; zeros meet the negative zeros below
    weight[..., 0] = -0.0
    return mx.array(np.float32(0.02) * weight).astype(getattr(mx, dtype)), a, b


def fused_by_mlx(weight: mx.array, a: Any, b: Any, scale: float, layout: str) -> mx.array:
    a, b = mx.array(a), mx.array(b)
    if layout == "linear":
        delta = (scale * b.T) @ a.T
    else:
        delta = (scale * b) @ a if layout == "switch" else (scale * a) @ b
    return weight + delta.astype(weight.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["linear", "switch", "embedding"])
@pytest.mark.parametrize("shape", [(65, 1, 96), (300, 8, 257), (128, 16, 512), (70, 64, 1536), (31, 13, 64)])
def test_fused_weights_match_mlx(dtype: str, layout: Any, shape: tuple[int, int, int]) -> None:
    if not agreement.fuse_agrees(dtype, layout, *shape):
        pytest.skip("this BLAS adds in another order")
    for scale in (1.0, 20.0, 1e5):
        weight, a, b = lora(dtype, layout, *shape, seed=shape[0])
        found = factors(tuple(weight.shape), a, b, scale, layout)
        ours = fuse_whole(stored(weight), dtype, found, threads=2)
        assert ours.tobytes() == stored(fused_by_mlx(weight, a, b, scale, layout)).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_in_place(dtype: str) -> None:
    """As a pass does with what it read, where the result takes the place of the weight."""
    weight, a, b = lora(dtype, "switch", 300, 9, 1056)
    expected = fuse_lora(stored(weight), dtype, a, b, 20.0, "switch")
    raw = stored(weight).copy()
    found = factors(tuple(weight.shape), a, b, 20.0, "switch")
    in_place = fuse_whole(
        raw, dtype, found, threads=2, empty=lambda shape, kind: raw.view(kind).reshape(shape)
    )
    assert np.shares_memory(in_place, raw)
    assert raw.tobytes() == expected.tobytes()


def test_fuse_check_finds_another_order_of_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(weight: Any, dtype: str, a: Any, b: Any, scale: float, layout: Any) -> Any:
        return fuse_lora(weight, dtype, a[:, ::-1].copy(), b[::-1].copy(), scale, layout)

    check = agreement._fuse_verified.__wrapped__
    expected = check("float32", "linear", 64, 8, 64)
    monkeypatch.setattr(agreement, "fuse_lora", backwards)
    assert not (expected and check("float32", "linear", 64, 8, 64))
    assert not (expected and check("bfloat16", "linear", 1024, 8, 512))


def test_factors_that_do_not_fit_are_refused() -> None:
    weight, a, b = lora("bfloat16", "linear", 64, 8, 96)
    with pytest.raises(ValueError, match="do not fit"):
        fuse_lora(stored(weight), "bfloat16", a, b[:4], 1.0)
    with pytest.raises(ValueError, match="not float32"):
        fuse_lora(stored(weight), "bfloat16", a.astype(np.float64), b, 1.0)


def test_not_available_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.available("bfloat16")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert not kernels.available("bfloat16")
    assert agreement.verify("bfloat16") == frozenset()
    assert not agreement.fuse_agrees("bfloat16", "linear", 64, 8, 64)


WORK = """
import sys, warnings
import numpy as np
from builder.engine.kernels import agreement, compiled, signatures
from builder.engine.kernels import cpu as kernels
print(kernels.ready("bfloat16"))
made = kernels.quantize_widths(np.full((8, 64), 0x3F80, np.uint16), "bfloat16", [(4, 64)])
print("numba" in sys.modules, agreement.verify("bfloat16") == kernels.SETTINGS)
"""


def fresh(cache: Path, code: str = WORK) -> list[str]:
    """What a new process says that keeps compiled code in `cache`."""
    if sys.platform == "darwin":
        pytest.skip("the cache directory of macOS does not follow an environment variable")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_code_is_compiled_once_on_a_machine_and_loaded_without_numba(tmp_path: Path) -> None:
    assert fresh(tmp_path) == ["False", "True True"]
    (kept,) = (tmp_path / "modelkiln").iterdir()
    assert fresh(tmp_path) == ["True", "False True"]
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[:-1], b""):  # read as if it were not there, never run
        kept.write_bytes(content)
        assert compiled._read(kept) is None
    assert fresh(tmp_path)[1] == "True True"
    assert [*(tmp_path / "modelkiln").iterdir()] == [kept] and compiled._read(kept) is not None


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a kind of x86-64 CPU")
def test_a_cpu_that_cannot_multiply_and_add_at_once_gets_loops_without(tmp_path: Path) -> None:
    code = f"""
import numba
from builder.engine.kernels import processor
processor.name = lambda: "nehalem"
processor._own = lambda: "+sse4.2,+popcnt,-avx,-avx2,-avx512f,-fma,-fma4"
numba.config.CPU_NAME = processor.name()
{WORK}
print(processor.is_wide())
"""
    assert fresh(tmp_path, code) == ["False", "True True", "False"]


@pytest.mark.slow
def test_loops_for_float32_are_compiled_when_a_weight_has_that_type(tmp_path: Path) -> None:
    assert fresh(tmp_path) == ["False", "True True"]
    wide = WORK.replace("np.uint16", "np.float32").replace('"bfloat16"', '"float32"')
    assert fresh(tmp_path, wide) == ["False", "True True"]
    assert fresh(tmp_path, wide) == ["True", "False True"]
    assert sorted(path.name[:9] for path in (tmp_path / "modelkiln").iterdir()) == ["loops-16-", "loops-32-"]


@pytest.mark.slow
def test_where_nothing_can_be_kept_every_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "modelkiln").write_text("a file where the folder should be")
    assert fresh(tmp_path) == ["False", "True True"]


@pytest.mark.slow
def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(fresh, [tmp_path] * 2)] == [["False", "True True"]] * 2
    assert fresh(tmp_path) == ["True", "False True"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("signatures.SIGNATURES['fuse_rows'] += 'p'", "makes functions of the type i32 (ptr, ptr, i64"),
        (
            "jitted._narrow = numba.njit(lambda kind, value: np.uint32(getpid()))",
            "lets the loops call getpid",
        ),
        ("jitted._round = None", "Failed in nopython mode pipeline"),
    ],
)
def test_another_numba_means_mlx_and_a_warning(tmp_path: Path, change: str, says: str) -> None:
    code = f"""
import numba, numpy as np
from builder.engine.kernels import agreement, compiled, jitted, signatures
from builder.engine.kernels import cpu as kernels
getpid = numba.types.ExternalFunction("getpid", numba.types.int32())
{change}
print(kernels.available("bfloat16"), agreement.verify("bfloat16"))
print(agreement.fuse_agrees("bfloat16", "linear", 64, 8, 64))
"""
    first, second, *rest = fresh(tmp_path, code)
    assert (first, second) == ("False frozenset()", "False")
    (warned,) = (line for line in rest if "RuntimeWarning" in line)
    assert "compiled kernels cannot be used, mlx is slower: " in warned and says in warned
    assert not (tmp_path / "modelkiln").exists()
