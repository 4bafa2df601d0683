"""The process that quantizes with llama.cpp: reads weights from stdin and writes their bytes to stdout.

Each request is a line of JSON and the float32 values behind it; so is each answer, with bytes behind it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any

from builder.errors import BuildError, described_error
from builder.gguf.library import TESTED, LlamaMissing, library

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_CHUNK = 1 << 18  # elements that a thread takes at a time
_WORST = 0.35  # of a type that is read back: the error as a part of the values. Two bits have 0.3


class Library:
    """The functions that are used, checked. Raises LlamaMissing for a library that answers otherwise."""

    def __init__(self) -> None:
        self._lib = lib = library()
        number, wide = ctypes.c_int, ctypes.c_int64
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, result, arguments in (
            ("ggml_type_name", ctypes.c_char_p, [number]),
            ("ggml_blck_size", wide, [number]),
            ("ggml_type_size", size, [number]),
            ("ggml_quantize_init", None, [number]),
            ("ggml_quantize_chunk", size, [number, pointer, pointer, wide, wide, wide, pointer]),
            ("ggml_validate_row_data", ctypes.c_bool, [number, pointer, size]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self._checked: set[str] = set()

    def quantize(self, kind: str, values: Array, means: Array | None, pool: ThreadPoolExecutor) -> Array:
        """The bytes of [matrices, rows, columns] in a type. Raises ValueError for values that have none."""
        import numpy as np

        if kind not in self._checked:
            self._check(kind)
        number, width, size = _known(kind)
        matrices, rows, columns = values.shape
        row_bytes = columns // width * size
        made = np.empty((matrices, rows, row_bytes), np.uint8)
        step = max(1, _CHUNK // columns)
        self._lib.ggml_quantize_init(number)

        def part(place: tuple[int, int]) -> bool:
            matrix, start = place
            count = min(step, rows - start)
            data = values[matrix, start : start + count]
            into = made[matrix, start : start + count]
            weighed = means[matrix].ctypes.data if means is not None else None
            written = self._lib.ggml_quantize_chunk(
                number, data.ctypes.data, into.ctypes.data, 0, count, columns, weighed
            )
            fits: bool = written == count * row_bytes
            return fits and self._lib.ggml_validate_row_data(number, into.ctypes.data, written)

        places = [(matrix, start) for matrix in range(matrices) for start in range(0, rows, step)]
        if not all(pool.map(part, places)):
            raise ValueError(f"its {kind} bytes are not valid")
        return made

    def _check(self, kind: str) -> None:
        """The type stands where it is expected, and another program reads back what is made as it."""
        import numpy as np
        from gguf import GGMLQuantizationType, quants

        number, width, size = _known(kind)
        found = (
            self._lib.ggml_type_name(number),
            self._lib.ggml_blck_size(number),
            self._lib.ggml_type_size(number),
        )
        expected = (kind.lower().encode(), width, size)
        if tuple(each.lower() if isinstance(each, bytes) else each for each in found) != expected:
            raise LlamaMissing(tested=TESTED, found=f"its type {number} is {found} instead of {expected}")
        self._checked.add(kind)
        values = np.sin(np.arange(4 * 256, dtype=np.float32) ** 1.5).reshape(1, 4, 256)
        with ThreadPoolExecutor(1) as pool:
            made = self.quantize(kind, values, None, pool)
        back = quants.dequantize(made.reshape(4, -1), GGMLQuantizationType[kind])
        error = float(np.linalg.norm(back - values[0]) / np.linalg.norm(values))
        if not error < _WORST:
            raise LlamaMissing(tested=TESTED, found=f"what it makes as {kind} reads back as something else")


def _known(kind: str) -> tuple[int, int, int]:
    """The number of a type, the elements of a block, and its bytes, as the package gguf knows them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    number = GGMLQuantizationType[kind]
    width, size = GGML_QUANT_SIZES[number]
    return int(number), int(width), int(size)


def _array(stream: IO[bytes], shape: tuple[int, ...]) -> Array:
    import numpy as np

    made = np.empty(shape, np.float32)
    view = memoryview(made.data).cast("B")
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
    return made


def serve(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Answers until there are no more requests."""
    import numpy as np

    known: Library | None = None
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        while line := stdin.readline():
            said = json.loads(line)
            columns = said["columns"]
            values = _array(stdin, (said["matrices"], said["rows"], columns))
            means = _array(stdin, (said["matrices"], columns)) if said["weighed"] else None
            answer: dict[str, Any]
            made: Array | None = None
            try:
                if not np.isfinite(values).all() or (means is not None and not np.isfinite(means).all()):
                    raise ValueError("it holds a number that is not finite")
                known = known or Library()
                made = known.quantize(said["kind"], values, means, pool)
                answer = {"bytes": made.nbytes}
            except BuildError as error:
                answer = {"error": described_error(error)}
            except ValueError as error:
                answer = {"what": str(error)}
            stdout.write(json.dumps(answer).encode() + b"\n")
            if made is not None:
                stdout.write(memoryview(made.data).cast("B"))
            stdout.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
