"""The loops of the CPU kernels: affine quantization to several widths and back, and LoRA fusing.

Importing this module imports numba. Only `machine_code` imports this module, once on a machine. The compiled
code that a machine keeps is valid for the files that `compiled` names. So everything that is compiled must
stay in this file.

The loops repeat mlx's CPU arithmetic operation for operation, but for a quotient that is rounded alike
(`_quotient`). So the order of the float32 operations matters, and no fast-math flag is set. Only integer work
may be rearranged. Minima and maxima are taken over integer keys that sort like the floats. This lets the
compiler vectorize them, and NaN and infinity become the largest keys. Codes are packed eight at a time inside
64-bit words.

One walk over the weights handles `CHUNK` elements at a time. They are widened to float32 once and stay in the
first-level cache while every setting is made from them. The loops start no threads, allocate nothing and
raise nothing. They take pointers and call no other code, so that their machine code stands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray
from numba.core import cgutils

from builder.engine.kernels import processor
from builder.engine.kernels.signatures import CHUNK, SCRATCH, TILE

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Raw = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int32]

BFLOAT16, FLOAT16, FLOAT32 = 0, 1, 2
WIDE, DELTA, RESTORED, CODES, KEYS, LOW, HIGH, SCALES, BIASES = range(SCRATCH)  # pieces of working memory

_BY_INVERSE = processor.is_wide()  # whether a quotient is computed from the inverse of the scale

_Function = TypeVar("_Function", bound=Callable[..., object])


def _inner(function: _Function) -> _Function:
    """Compiles a loop into the loops that call it."""
    compiled: _Function = numba.njit(error_model="numpy", _nrt=False)(function)
    return compiled


def _any_order(function: _Function) -> _Function:
    """Compiles a loop whose float sums may be taken in any order. For statistics, never for weights."""
    compiled: _Function = numba.njit(error_model="numpy", _nrt=False, fastmath={"reassoc", "nsz"})(function)
    return compiled


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _expect(typing: Any, address: Any) -> Any:
    """Asks the CPU for the cache line at an address, which need not be one of the process (llvm.prefetch)."""
    number = ir.IntType(32)

    def emit(_: Any, builder: Any, __: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(given[0], ir.PointerType())
        builder.call(function, [place, number(0), number(3), number(1)])  # to read, to be kept, data
        return ir.Constant(ir.IntType(64), 0)

    return numba.types.int64(numba.types.uintp), emit


@numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once. Only where `_BY_INVERSE`: other CPUs may call a function for it."""

    def emit(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.fma(*given)

    number = numba.types.float32
    return number(number, number, number), emit


@_inner
def _expect_all(values: Raw) -> None:
    """Asks the CPU for values that will be read soon. It does not look beyond a page of 4 KiB by itself."""
    address = np.uintp(values.ctypes.data)
    for at in range(0, values.size * values.itemsize, 64):
        _expect(np.uintp(address + np.uintp(at)))


@_inner
def _wide(kind: int, stored: np.uint32) -> np.uint32:
    """The float32 bit pattern of a stored value."""
    if kind == BFLOAT16:
        return np.uint32(stored << np.uint32(16))
    size = np.uint32(stored & np.uint32(0x7FFF))
    small = np.float32(np.float32(np.int32(size)) * np.float32(2.0**-24)).view(np.uint32)
    offset = np.uint32(0x70000000) if size >= np.uint32(0x7C00) else np.uint32(0x38000000)
    large = np.uint32((size << np.uint32(13)) + offset)
    wide = small if size < np.uint32(0x400) else large
    return np.uint32(wide | ((stored & np.uint32(0x8000)) << np.uint32(16)))


@_inner
def _widen(kind: int, raw: Raw, bits: Words) -> None:
    """Writes `raw` as float32 bit patterns."""
    if kind == BFLOAT16:
        for j in range(raw.size):
            bits[j] = _wide(BFLOAT16, np.uint32(raw[j]))
    elif kind == FLOAT16:
        for j in range(raw.size):
            bits[j] = _wide(FLOAT16, np.uint32(raw[j]))
    else:
        for j in range(raw.size):
            bits[j] = raw[j]


@_inner
def _sort_keys(bits: Keys, keys: Keys) -> None:
    """Writes integers that sort like the floats: the bit pattern, with the magnitude inverted below zero."""
    for j in range(keys.size):
        keys[j] = bits[j] ^ ((bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inner
def _narrow(kind: int, value: np.float32) -> np.uint32:
    """The bits of `value` rounded to nearest even in the storage type. `value` is not NaN."""
    bits = np.float32(value).view(np.uint32)
    if kind == FLOAT32:
        return bits
    if kind == BFLOAT16:
        return np.uint32(
            (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        )
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size >= np.uint32(0x47800000):  # 65536 and more: infinity
        return np.uint32(sign | np.uint32(0x7C00))
    if size < np.uint32(0x38800000):  # below the smallest normal: let the adder round at 2 ** -24
        rounded = np.float32(abs(value) + np.float32(0.5)).view(np.uint32)
        return np.uint32(sign | (rounded - np.uint32(0x3F000000)))
    odd = (size >> np.uint32(13)) & np.uint32(1)
    return np.uint32(sign | ((size + np.uint32(0xFFF) + odd - np.uint32(0x38000000)) >> np.uint32(13)))


@_inner
def _round(kind: int, bits: Words) -> None:
    """Rounds float32 bit patterns to the storage type, in place."""
    if kind == BFLOAT16:
        for j in range(bits.size):
            odd = (bits[j] >> np.uint32(16)) & np.uint32(1)
            bits[j] = np.uint32(bits[j] + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    elif kind == FLOAT16:
        for j in range(bits.size):
            size = np.float32(abs(np.uint32(bits[j]).view(np.float32)))
            small = np.float32((size + np.float32(0.5)) - np.float32(0.5)).view(np.uint32)
            small = np.uint32(small | (bits[j] & np.uint32(0x80000000)))
            odd = (bits[j] >> np.uint32(13)) & np.uint32(1)
            large = np.uint32(bits[j] + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)
            if size >= np.float32(65520.0):
                large = (bits[j] & np.uint32(0x80000000)) | np.uint32(0x7F800000)
            bits[j] = small if size < np.float32(2.0**-14) else large


@_inner
def _ranges(keys: Keys, low: Keys, high: Keys) -> bool:
    """Writes the smallest and largest key of each row of `keys`. Returns whether all floats are finite."""
    least, most = np.int32(0), np.int32(0)
    for i in range(keys.shape[0]):
        smallest, largest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        for j in range(keys.shape[1]):
            smallest, largest = min(smallest, keys[i, j]), max(largest, keys[i, j])
        low[i], high[i] = smallest, largest
        least, most = min(least, smallest), max(most, largest)
    return bool(most < np.int32(0x7F800000) and least > np.int32(-0x7F800001))


def _half_ranges_of(span: int) -> Callable[[int, Raw, Keys, Keys], bool]:
    """The loop of `_half_ranges` for one span: the compiler unrolls it, because it knows the number."""

    @_inner
    def ranges(top: int, raw: Raw, low: Keys, high: Keys) -> bool:
        least, most = np.int16(0), np.int16(0)
        for i in range(raw.size // span):
            row = raw[i * span : i * span + span]
            smallest, largest = np.int16(0x7FFF), np.int16(-0x8000)
            for j in range(span):
                half = np.int16(row[np.uintp(j)])
                key = np.int16(half ^ np.int16(np.int16(half >> np.int16(15)) & np.int16(0x7FFF)))
                smallest, largest = min(smallest, key), max(largest, key)
            low[i], high[i] = np.int32(smallest), np.int32(largest)
            least, most = min(least, smallest), max(most, largest)
        return bool(np.int64(most) < top and np.int64(least) > -top - 1)

    return ranges


_half_ranges_32, _half_ranges_64, _half_ranges_128 = map(_half_ranges_of, (32, 64, 128))


@_inner
def _half_ranges(top: int, raw: Raw, span: int, low: Keys, high: Keys) -> bool:
    """As `_ranges`, for stored values of 16 bits, with keys of 16 bits: twice as many at a time.

    top: the bits of infinity.
    """
    if span == 32:
        return bool(_half_ranges_32(top, raw, low, high))
    if span == 64:
        return bool(_half_ranges_64(top, raw, low, high))
    return bool(_half_ranges_128(top, raw, low, high))


@_inner
def _widen_keys(kind: int, keys: Keys) -> None:
    """Turns keys of 16 bits into those of the float32 values, in place."""
    for i in range(keys.size):
        key = keys[i]
        half = np.uint32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFF))) & np.uint32(0xFFFF)
        bits = np.int32(_wide(kind, half))
        keys[i] = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inner
def _from_key(key: np.int32) -> np.float32:
    """The float of a key made by `_ranges`."""
    return np.float32(np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32))


@_inner
def _put(out: Words, at: np.uint64, word: np.uint64) -> None:
    """Stores 64 bits as two little-endian words."""
    out[at] = np.uint32(word & np.uint64(0xFFFFFFFF))
    out[at + np.uint64(1)] = np.uint32(word >> np.uint64(32))


@_inner
def _pack(width: int, words: Words, eight: npt.NDArray[np.uint64], count: int, out: Words) -> None:
    """Writes `count` codes (a multiple of 32) as a little-endian stream of `width`-bit fields.

    `words` and `eight` are the same memory. It holds one code per byte.
    """
    if width == 8:
        for j in range(count // 4):
            out[j] = words[j]
        return
    field = np.uint64(width)
    gap1, gap2 = np.uint64(8) - field, np.uint64(16) - np.uint64(2) * field
    gap4 = np.uint64(32) - np.uint64(4) * field
    for j in range(count // 8):  # remove the gaps between eight codes, first within pairs
        x = eight[j]
        x = (x & np.uint64(0x00FF00FF00FF00FF)) | ((x & np.uint64(0xFF00FF00FF00FF00)) >> gap1)
        x = (x & np.uint64(0x0000FFFF0000FFFF)) | ((x & np.uint64(0xFFFF0000FFFF0000)) >> gap2)
        eight[j] = (x & np.uint64(0x00000000FFFFFFFF)) | ((x & np.uint64(0xFFFFFFFF00000000)) >> gap4)
    if width == 4:
        for j in range(count // 8):
            out[j] = np.uint32(eight[j])
        return
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for group in range(count // 32):  # numba looks for negative indices, but not in unsigned numbers
        first, at = np.uint64(4 * group), np.uint64(group * width)
        a, b, c, d = eight[first], eight[first + one], eight[first + two], eight[first + three]
        if width == 2:
            _put(out, at, a | (b << np.uint64(16)) | (c << np.uint64(32)) | (d << np.uint64(48)))
        elif width == 3:
            _put(out, at, a | (b << np.uint64(24)) | (c << np.uint64(48)))
            out[at + two] = np.uint32((c >> np.uint64(16)) | (d << np.uint64(8)))
        elif width == 5:
            _put(out, at, a | (b << np.uint64(40)))
            _put(out, at + two, (b >> np.uint64(24)) | (c << np.uint64(16)) | (d << np.uint64(56)))
            out[at + four] = np.uint32(d >> np.uint64(8))
        else:
            _put(out, at, a | (b << np.uint64(48)))
            _put(out, at + two, (b >> np.uint64(16)) | (c << np.uint64(32)))
            _put(out, at + four, (c >> np.uint64(32)) | (d << np.uint64(16)))


@_inner
def _unpack(width: int, packed: Bytes, words: Words, steps: Bytes, eight: npt.NDArray[np.uint64]) -> None:
    """Writes the codes of a little-endian stream of `width`-bit fields, one code per byte.

    `packed` and `words` are the same memory, as are `steps` and `eight`. The size of `steps` is a multiple of
    32.
    """
    if width == 8:
        for j in range(steps.size):
            steps[j] = packed[j]
        return
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    if width == 4:
        for j in range(eight.size):
            eight[j] = np.uint64(words[j])
    elif width == 5:
        for group in range(eight.size // 4):  # unsigned, as in `_pack`
            at, first = np.uint64(5 * group), np.uint64(4 * group)
            a, b, c = np.uint64(words[at]), np.uint64(words[at + one]), np.uint64(words[at + two])
            d, e = np.uint64(words[at + three]), np.uint64(words[at + four])
            eight[first] = a | ((b & np.uint64(0xFF)) << np.uint64(32))
            eight[first + one] = (b >> np.uint64(8)) | ((c & np.uint64(0xFFFF)) << np.uint64(24))
            eight[first + two] = (c >> np.uint64(16)) | ((d & np.uint64(0xFFFFFF)) << np.uint64(16))
            eight[first + three] = (d >> np.uint64(24)) | (e << np.uint64(8))
    elif width == 6:
        for group in range(eight.size // 2):
            at, first = np.uint64(3 * group), np.uint64(2 * group)
            a, b, c = np.uint64(words[at]), np.uint64(words[at + one]), np.uint64(words[at + two])
            eight[first] = a | ((b & np.uint64(0xFFFF)) << np.uint64(32))
            eight[first + one] = (b >> np.uint64(16)) | (c << np.uint64(16))
    else:
        for group in range(eight.size):
            x = np.uint64(0)
            for k in range(width):
                x |= np.uint64(packed[np.uint64(group * width + k)]) << np.uint64(8 * k)
            eight[np.uint64(group)] = x
    field = np.uint64(width)
    gap1, gap2 = np.uint64(8) - field, np.uint64(16) - np.uint64(2) * field
    gap4 = np.uint64(32) - np.uint64(4) * field
    fours = (one << (four * field)) - one
    pairs = (one << (two * field)) - one
    singles = (one << field) - one
    pairs, singles = pairs | (pairs << np.uint64(32)), singles | (singles << np.uint64(16))
    singles |= singles << np.uint64(32)
    for j in range(eight.size):  # insert the gaps between eight codes, last within pairs
        x = eight[j]
        x = (x & fours) | ((x & ~fours) << gap4)
        x = (x & pairs) | ((x & ~pairs) << gap2)
        eight[j] = (x & singles) | ((x & ~singles) << gap1)


@_inner
def _scale_and_bias(least: np.float32, most: np.float32, top: np.float32) -> tuple[np.float32, np.float32]:
    """Scale and bias of a group from `least` to `most`. Zero is a step, and one end is exact.

    Without branches, so that several groups are computed at a time.
    """
    negative = abs(least) > abs(most)
    scale = (most - least) / top
    scale = np.float32(1e-7) if scale < np.float32(1e-7) else scale
    scale = scale if negative else -scale
    edge = least if negative else most
    steps = np.rint(edge / scale)
    exact = edge / steps
    hit = steps != np.float32(0)
    return exact if hit else scale, edge if hit else np.float32(0)


@_inner
def _store(kind: int, values: Floats, out: Raw) -> None:
    """Writes `values` in the storage type."""
    for i in range(out.size):
        out[i] = _narrow(kind, values[i])


@_inner
def _join(low: Keys, high: Keys, groups: int, least: Keys, most: Keys) -> None:
    """Writes the smallest and largest key of each group. Row i of `low` and `high` has those of its parts."""
    for i in range(groups):
        smallest, largest = low[i, 0], high[i, 0]
        for j in range(1, low.shape[1]):
            smallest, largest = min(smallest, low[i, j]), max(largest, high[i, j])
        least[i], most[i] = smallest, largest


@_inner
def _fit(least: Keys, most: Keys, top: np.float32, scales: Floats, biases: Floats) -> None:
    """Writes scale and bias of each group, from its smallest and largest key."""
    for i in range(least.size):
        scales[i], biases[i] = _scale_and_bias(_from_key(least[i]), _from_key(most[i]), top)


@_inner
def _quotient(value: np.float32, scale: np.float32, inverse: np.float32, rest: np.float32) -> np.float32:
    """value / scale, correctly rounded. inverse + rest: 1 / scale, and what rounding it took away.

    With the rest, `near` is one of the two floats around the quotient. Then the remainder is exact, and the
    last step rounds correctly (Markstein, IBM J. Res. Dev. 34, 1990). A remainder that underflows belongs to
    a quotient that rounds to code 0.
    """
    near = _multiply_add(value, inverse, np.float32(value * rest))
    remainder = _multiply_add(-near, scale, value)
    return np.float32(_multiply_add(remainder, inverse, near))


@_inner
def _code(step: np.float32, top: np.float32) -> np.uint8:
    """`step` clipped to 0 .. top and rounded to the nearest even number, which the adder does at 2 ** 23."""
    near = np.float32(min(max(step, np.float32(0)), top) + np.float32(2.0**23))
    return np.uint8(near.view(np.uint32) & np.uint32(0xFF))


@_inner
def _steps(
    values: Floats, groups: int, scales: Floats, biases: Floats, top: np.float32, steps: Bytes
) -> None:
    """Writes the code of each value: its distance from the bias in scales, rounded, clipped to 0 .. top.

    Where vectors are wide, the quotient is computed from the inverse. Division alone would take longer.
    """
    for i in range(groups):
        scale, bias = scales[i], biases[i]
        if _BY_INVERSE and abs(scale) > np.float32(2.0**-60) and abs(scale) < np.float32(2.0**60):
            inverse = np.float32(1) / scale
            rest = _multiply_add(-inverse, scale, np.float32(1)) * inverse
            for j in range(values.shape[1]):
                value = np.float32(values[i, j] - bias)
                steps[i, j] = _code(_quotient(value, scale, inverse, rest), top)
        else:
            for j in range(values.shape[1]):
                steps[i, j] = _code((values[i, j] - bias) / scale, top)


@_inner
def _scale_up(steps: Bytes, groups: int, scales: Floats, out: Floats) -> None:
    """Does the multiplication of mx.dequantize, group by group."""
    for i in range(groups):
        scale = scales[i]
        for j in range(steps.shape[1]):
            out[i, j] = np.float32(steps[i, j]) * scale


@_inner
def _add_biases(groups: int, biases: Floats, out: Floats) -> None:
    """Does the addition of mx.dequantize, group by group."""
    for i in range(groups):
        bias = biases[i]
        for j in range(out.shape[1]):
            out[i, j] += bias


@_inner
def _rounded(bits: np.uint32) -> np.float32:
    """A float32 bit pattern rounded to bfloat16."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


@_inner
def _restore(
    kind: int, steps: Bytes, groups: int, scales: Floats, biases: Floats, out: Floats, bits: Words
) -> None:
    """Does what mx.dequantize does, with each product and each sum rounded to the storage type.

    `out` and `bits` are the same memory.
    """
    if kind == BFLOAT16:
        for i in range(groups):
            scale, bias = scales[i], biases[i]
            for j in range(steps.shape[1]):
                product = _rounded(np.float32(np.float32(steps[i, j]) * scale).view(np.uint32))
                out[i, j] = _rounded(np.float32(product + bias).view(np.uint32))
        return
    _scale_up(steps, groups, scales, out)
    _round(kind, bits)
    _add_biases(groups, biases, out)
    _round(kind, bits)


@_any_order
def _add_errors(restored: Floats, values: Floats, delta: Floats, groups: int) -> tuple[float, float]:
    """The sums of squared errors and of error times delta: float32 in any order in a row, then float64."""
    squares, dots = 0.0, 0.0
    for i in range(groups):
        square, dot = np.float32(0), np.float32(0)
        for j in range(restored.shape[1]):
            error = restored[i, j] - values[i, j]
            square += error * error
            dot += error * delta[i, j]
        squares += np.float64(square)
        dots += np.float64(dot)
    return squares, dots


@_any_order
def _add_squares(rows: Floats, groups: int) -> float:
    """The sum of squares: float32 in any order within a row, then float64."""
    squares = 0.0
    for i in range(groups):
        square = np.float32(0)
        for j in range(rows.shape[1]):
            square += rows[i, j] * rows[i, j]
        squares += np.float64(square)
    return squares


def quantize_span(
    kind: int,
    raw: Any,
    original: Any,
    measured: int,
    first: int,
    last: int,
    settings: Any,
    rows: int,
    codes: Any,
    code_count: int,
    params: Any,
    param_count: int,
    sums: Any,
    scratch: Any,
) -> int:
    """Quantizes elements `first` to `last` (exclusive) of the flat array `raw` to each of `settings`.

    settings: (rows, 5) int64. A row holds bits, group size, where its codes start in `codes`, and where its
    scales and its biases start in `params`. `first` is a multiple of CHUNK. `last - first` is a multiple of
    every group size.
    original: the weights before fusing, flat. They are read only if `measured` is not 0.
    sums: (rows, 3) float64. Squared error, error times delta and squared delta are added to a row.
    scratch: SCRATCH pointers to CHUNK words each.
    Returns -1, or the index where a chunk starts that holds NaN or infinity.
    """
    stored, before = carray(raw, (last,)), carray(original, (last,))
    table, totals = carray(settings, (rows, 5)), carray(sums, (rows, 3))
    all_codes, all_params = carray(codes, (code_count,)), carray(params, (param_count,))
    bits, signed = carray(scratch[WIDE], (CHUNK,), np.uint32), carray(scratch[WIDE], (CHUNK,), np.int32)
    values = carray(scratch[WIDE], (CHUNK,), np.float32)
    delta_bits = carray(scratch[DELTA], (CHUNK,), np.uint32)
    delta = carray(scratch[DELTA], (CHUNK,), np.float32)
    restored = carray(scratch[RESTORED], (CHUNK,), np.uint32)
    words, eight = carray(scratch[CODES], (CHUNK,), np.uint32), carray(scratch[CODES], (CHUNK,), np.uint64)
    keys = carray(scratch[KEYS], (CHUNK,), np.int32)
    span = table[0, 1]
    for row in range(rows):
        span = min(span, table[row, 1])
    parts = CHUNK // span
    low, high = carray(scratch[LOW], (parts,), np.int32), carray(scratch[HIGH], (parts,), np.int32)
    scale_bits = carray(scratch[SCALES], (parts,), np.uint32)
    scales = carray(scratch[SCALES], (parts,), np.float32)
    bias_bits = carray(scratch[BIASES], (parts,), np.uint32)
    biases = carray(scratch[BIASES], (parts,), np.float32)
    for start in range(first, last, CHUNK):
        count = min(CHUNK, last - start)
        _expect_all(stored[start + count : min(start + count + CHUNK, last)])
        _widen(kind, stored[start : start + count], bits)
        if kind == FLOAT32:
            _sort_keys(signed, keys[:count])
            finite = _ranges(carray(scratch[KEYS], (count // span, span), np.int32), low, high)
        else:
            infinity = 0x7F80 if kind == BFLOAT16 else 0x7C00
            finite = _half_ranges(infinity, stored[start : start + count], span, low, high)
            _widen_keys(kind, low[: count // span])
            _widen_keys(kind, high[: count // span])
        if not finite:
            return start
        delta_squared = 0.0
        if measured:
            _widen(kind, before[start : start + count], delta_bits)
            for j in range(count):
                delta[j] = values[j] - delta[j]
            delta_squared = _add_squares(carray(scratch[DELTA], (parts, span), np.float32), count // span)
        for row in range(rows):
            width, group, codes_at, scales_at, biases_at = (
                table[row, 0],
                table[row, 1],
                table[row, 2],
                table[row, 3],
                table[row, 4],
            )
            top, groups, at = np.float32((1 << width) - 1), count // group, start // group
            shape, joined = (CHUNK // group, group), (CHUNK // group, group // span)
            tile = carray(scratch[WIDE], shape, np.float32)
            steps = carray(scratch[CODES], shape, np.uint8)
            if group == span:
                _fit(low[:groups], high[:groups], top, scales, biases)
            else:  # nobody needs the keys of the weights any more
                least, most = keys[:groups], keys[CHUNK // 2 : CHUNK // 2 + groups]
                whole = carray(scratch[LOW], joined, np.int32), carray(scratch[HIGH], joined, np.int32)
                _join(whole[0], whole[1], groups, least, most)
                _fit(least, most, top, scales, biases)
            _steps(tile, groups, scales, biases, top, steps)
            _store(kind, scales, all_params[scales_at + at : scales_at + at + groups])
            _store(kind, biases, all_params[biases_at + at : biases_at + at + groups])
            if measured:
                _round(kind, scale_bits)
                _round(kind, bias_bits)
                back = carray(scratch[RESTORED], shape, np.float32)
                _scale_up(steps, groups, scales, back)
                _round(kind, restored[:count])
                _add_biases(groups, biases, back)
                _round(kind, restored[:count])
                square, dot = _add_errors(back, tile, carray(scratch[DELTA], shape, np.float32), groups)
                totals[row, 0] += square
                totals[row, 1] += dot
                totals[row, 2] += delta_squared
            packed_at = codes_at + start // 32 * width
            _pack(width, words, eight, count, all_codes[packed_at : packed_at + count // 32 * width])
    return -1


def dequantize_span(
    kind: int,
    codes: Any,
    scales: Any,
    biases: Any,
    width: int,
    group: int,
    first: int,
    last: int,
    out: Any,
    scratch: Any,
) -> int:
    """Writes elements `first` to `last` (exclusive) of what mx.dequantize makes, as float32.

    `first` is a multiple of CHUNK. `last - first` is a multiple of the group size. The product and the sum
    are each rounded to the storage type, as mx.dequantize rounds them.
    out: `last` float32 bit patterns. scratch: SCRATCH pointers to CHUNK words each. Returns 0.
    """
    packed = carray(codes, (last // 8 * width,), np.uint8)
    words = carray(codes, (last // 32 * width,), np.uint32)
    all_scales, all_biases = carray(scales, (last // group,)), carray(biases, (last // group,))
    wide_bits = carray(out, (last,), np.uint32)
    wide = carray(out, (last // group, group), np.float32)
    flat = carray(scratch[CODES], (CHUNK,), np.uint8)
    eight = carray(scratch[CODES], (CHUNK // 8,), np.uint64)
    steps = carray(scratch[CODES], (CHUNK // group, group), np.uint8)
    scale_bits, scale = (
        carray(scratch[SCALES], (CHUNK // group,), np.uint32),
        carray(scratch[SCALES], (CHUNK // group,), np.float32),
    )
    bias_bits, bias = (
        carray(scratch[BIASES], (CHUNK // group,), np.uint32),
        carray(scratch[BIASES], (CHUNK // group,), np.float32),
    )
    for start in range(first, last, CHUNK):
        count = min(CHUNK, last - start)
        groups, at = count // group, start // group
        _unpack(
            width,
            packed[start // 8 * width : (start + count) // 8 * width],
            words[start // 32 * width : (start + count) // 32 * width],
            flat[:count],
            eight[: count // 8],
        )
        _widen(kind, all_scales[at : at + groups], scale_bits)
        _widen(kind, all_biases[at : at + groups], bias_bits)
        _restore(kind, steps, groups, scale, bias, wide[at : at + groups], wide_bits[start : start + count])
    return 0


def widen_span(kind: int, raw: Any, first: int, last: int, out: Any) -> int:
    """Writes elements `first` to `last` (exclusive) of `raw` as float32. Returns 0."""
    _widen(kind, carray(raw, (last,))[first:last], carray(out, (last,))[first:last])
    return 0


@_inner
def _combine(factors: Floats, rows: Floats, first: int, sums: Floats) -> None:
    """sums = factors @ rows from column `first` on, added in order from zero. Eight at a time, only to save
    loads and stores.
    """
    rank, size = factors.size, sums.size
    whole = rank - rank % 8
    if not whole:
        for j in range(size):
            sums[j] = np.float32(0)
    for k in range(0, whole, 8):
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        e, f, g, h = factors[k + 4], factors[k + 5], factors[k + 6], factors[k + 7]
        row_a, row_b = rows[k, first : first + size], rows[k + 1, first : first + size]
        row_c, row_d = rows[k + 2, first : first + size], rows[k + 3, first : first + size]
        row_e, row_f = rows[k + 4, first : first + size], rows[k + 5, first : first + size]
        row_g, row_h = rows[k + 6, first : first + size], rows[k + 7, first : first + size]
        if k:
            for j in range(size):
                half = (((sums[j] + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j]
                sums[j] = (((half + e * row_e[j]) + f * row_f[j]) + g * row_g[j]) + h * row_h[j]
        else:
            for j in range(size):
                half = (((np.float32(0) + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j]
                sums[j] = (((half + e * row_e[j]) + f * row_f[j]) + g * row_g[j]) + h * row_h[j]
    for k in range(whole, rank):
        a, row_a = factors[k], rows[k, first : first + size]
        for j in range(size):
            sums[j] += a * row_a[j]


def fuse_rows(
    kind: int,
    raw: Any,
    left: Any,
    right: Any,
    rank: int,
    columns: int,
    first: int,
    last: int,
    out: Any,
    scratch: Any,
) -> int:
    """Writes rows `first` to `last` (exclusive) of weight + left @ right.

    left @ right is rounded to the storage type, and so is the result. raw, out: (rows, columns) bits. left:
    (rows, rank) float32. right: (rank, columns) float32. The sum over the rank is taken in order from zero.
    Every product and every sum is rounded to float32. TILE columns at a time, so that those of `right` stay
    in the first-level cache for all rows.
    scratch: two pointers to TILE words. Returns 0.
    """
    stored, fused = carray(raw, (last, columns)), carray(out, (last, columns))
    lefts, rights = carray(left, (last, rank)), carray(right, (rank, columns))
    bits, weights = carray(scratch[0], (TILE,), np.uint32), carray(scratch[0], (TILE,), np.float32)
    sum_bits, sums = carray(scratch[1], (TILE,), np.uint32), carray(scratch[1], (TILE,), np.float32)
    for start in range(0, columns, TILE):
        count = min(TILE, columns - start)
        for i in range(first, last):
            _expect_all(stored[min(i + 1, last - 1), start : start + count])
            _combine(lefts[i], rights, start, sums[:count])
            before, after = stored[i, start : start + count], fused[i, start : start + count]
            if kind == BFLOAT16:  # `out` may be `raw`: a loop over both would not be vectorized
                for j in range(count):
                    weight = np.uint32(np.uint32(before[j]) << np.uint32(16)).view(np.float32)
                    weights[j] = weight + _rounded(sum_bits[j])
                _store(BFLOAT16, weights, after)
                continue
            _round(kind, sum_bits[:count])
            _widen(kind, before, bits[:count])
            for j in range(count):
                weights[j] += sums[j]
            _store(kind, weights, after)
    return 0
