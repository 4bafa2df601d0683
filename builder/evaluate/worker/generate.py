"""Generates answers greedily with the target as it is served. Each answer is checked and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from builder.evaluate.process import Step, untold
from builder.evaluate.results import MOST_SAMPLES, Sample, shortened
from builder.evaluate.statistics import Figure, mean, rate
from builder.evaluate.worker.answers import CHECKS, reference
from builder.evaluate.worker.measure import Measured
from builder.evaluate.worker.questions import prompt
from builder.spec.rows import Row
from builder.spec.types import Suite


class Writer(Protocol):
    """A model that writes."""

    def write(self, tokens: Sequence[int], limit: int) -> tuple[str, float]:
        """The likeliest text after these tokens, of at most `limit` tokens, and the tokens per second."""

    def memory(self) -> float:
        """What it took at its peak, in GB."""


class MlxWriter:
    """The model in a directory, by mlx-lm.

    On a CPU, activations and scales are float32, because the CPU kernels for half precision are 50 times
    slower. The quantized weights stay as they are. Its memory is that of mlx's arrays.
    """

    def __init__(self, directory: Path, tokenizer: Any, *, trust_remote_code: bool) -> None:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        self._model, _ = load_model(directory, trust_remote_code=trust_remote_code)
        if mx.default_device() == mx.Device(mx.cpu):
            self._model.set_dtype(mx.float32)
        mx.eval(self._model.parameters())
        self._tokenizer = tokenizer

    def write(self, tokens: Sequence[int], limit: int) -> tuple[str, float]:
        from mlx_lm import stream_generate

        parts = list(stream_generate(self._model, self._tokenizer, list(tokens), max_tokens=limit))
        return "".join(part.text for part in parts), float(parts[-1].generation_tps)

    def memory(self) -> float:
        import mlx.core as mx

        return mx.get_peak_memory() / 1e9


def generate_all(
    suite: Suite, rows: Sequence[Row], tokenizer: Any, writer: Writer, *, step: Step = untold
) -> Measured:
    """The figures `rate` (share of right answers), `seconds` (per query), `tokens_per_second` and `memory`.

    A short query before the first is not timed, because that query reads the weights. The answers to the
    first rows are kept, so that a person can read what all variants said to equal questions. Raises
    DataInvalid.
    """
    references = [reference(suite, row) for row in rows]
    right, seconds, speeds, samples = [], [], [], []
    for number, row in enumerate([*rows[:1], *rows]):
        start = time.perf_counter()
        tokens = prompt(suite, tokenizer, row)
        text, speed = writer.write(tokens, suite.max_tokens if number else 1)
        if number:
            seconds.append(time.perf_counter() - start)
            speeds.append(speed)
            right.append(CHECKS[suite.check](text, references[number - 1]))
            if number <= MOST_SAMPLES:
                samples.append(_sample(row, references[number - 1], text, right=right[-1]))
            step(number, len(rows))
    figures = {
        "rate": rate(right),
        "tokens_per_second": mean(speeds),
        "seconds": mean(seconds),
        "memory": Figure(writer.memory(), None, None, len(right)),
    }
    return Measured(figures, {"rate": tuple(map(float, right))}, tuple(samples))


def _sample(row: Row, reference: str, text: str, *, right: bool) -> Sample:
    """An answer for a person to read. The question is the last message before the right answer."""
    asked = row["messages"][-2].get("content")
    return Sample(
        shortened(asked if isinstance(asked, str) else ""), shortened(reference), shortened(text), right
    )
