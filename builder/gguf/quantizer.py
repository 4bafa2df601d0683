"""Quantizes weights with llama.cpp, in a process of its own: a crash there is one line here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from builder.errors import BuildError, error_from
from builder.gguf.library import library_file

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MODULE = "builder.gguf.quantizing"


class QuantizerFailed(BuildError):
    """llama.cpp could not quantize {name}: {what}."""

    exit_code = 2
    hint = "Nothing half-made is kept. The same command begins this file again."


class Quantizer:
    """The process, while a file is written. Raises LlamaMissing where there is no llama.cpp."""

    def __init__(self) -> None:
        library_file()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        self._process = subprocess.Popen([sys.executable, "-m", MODULE], **pipes)  # type: ignore[call-overload]

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        self._process.wait()
        self._said.close()

    def quantize(self, name: str, kind: str, values: Array, means: Array | None) -> bytes:
        """The bytes of float32 values [matrices, rows, columns] in a type.

        `means`: how large the inputs are, float32 [matrices, columns], or None. Raises QuantizerFailed.
        """
        import numpy as np

        matrices, rows, columns = values.shape
        said = {"kind": kind, "matrices": matrices, "rows": rows, "columns": columns}
        head = json.dumps({**said, "weighed": means is not None}).encode() + b"\n"
        parts = [np.ascontiguousarray(each, np.float32) for each in (values, means) if each is not None]
        out, back = self._process.stdin, self._process.stdout
        assert out is not None
        assert back is not None
        try:
            for part in (head, *(memoryview(each.data).cast("B") for each in parts)):
                out.write(part)
            out.flush()
            answer = json.loads(back.readline())
        except (OSError, ValueError):
            raise QuantizerFailed(name=name, what=self._last_words()) from None
        if "error" in answer:
            raise error_from(answer["error"])
        if "what" in answer:
            raise QuantizerFailed(name=name, what=answer["what"])
        made = _exactly(back, int(answer["bytes"]))
        if made is None:
            raise QuantizerFailed(name=name, what=self._last_words())
        return made

    def _last_words(self) -> str:
        """Why the process ended, as it said it, or as its code says it."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return f"its process {how} ({last[:160]})"


def _exactly(stream: IO[bytes], count: int) -> bytes | None:
    found = stream.read(count)
    return found if len(found) == count else None
