"""Generates answers greedily with the target as it is served. Each answer is checked and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from builder.evaluate.process import Step, untold
from builder.evaluate.results import MOST_SAMPLES, Sample, shortened
from builder.evaluate.statistics import Figure, mean, rate
from builder.evaluate.worker.answers import CHECKS, reference
from builder.evaluate.worker.measure import Measured
from builder.evaluate.worker.questions import prompt
from builder.evaluate.worker.tokens import tokenizer_of
from builder.spec.rows import Row
from builder.spec.types import Suite


def generate_all(
    suite: Suite,
    rows: Sequence[Row],
    directory: Path,
    *,
    trust_remote_code: bool,
    step: Step = untold,
) -> Measured:
    """The figures `rate` (share of right answers), `seconds` (per query), `tokens_per_second` and `memory`.

    `memory` is the peak of mlx's arrays in GB. On a CPU, activations and scales are float32, because the CPU
    kernels for half precision are 50 times slower. The quantized weights stay as they are.

    A short query before the first is not timed, because that query reads the weights. The answers to the
    first rows are kept, so that a person can read what all variants said to equal questions. Raises
    DataInvalid.
    """
    references = [reference(suite, row) for row in rows]
    import mlx.core as mx
    from mlx_lm import stream_generate
    from mlx_lm.utils import load_model

    model, _ = load_model(directory, trust_remote_code=trust_remote_code)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    tokenizer = tokenizer_of(directory, trust_remote_code=trust_remote_code)
    mx.eval(model.parameters())
    right, seconds, speeds, samples = [], [], [], []
    for number, row in enumerate([*rows[:1], *rows]):
        start = time.perf_counter()
        tokens = prompt(suite, tokenizer, row)
        limit = suite.max_tokens if number else 1
        parts = list(stream_generate(model, tokenizer, tokens, max_tokens=limit))
        if number:
            seconds.append(time.perf_counter() - start)
            speeds.append(float(parts[-1].generation_tps))
            text = "".join(part.text for part in parts)
            right.append(CHECKS[suite.check](text, references[number - 1]))
            if number <= MOST_SAMPLES:
                samples.append(_sample(row, references[number - 1], text, right=right[-1]))
            step(number, len(rows))
    peak = mx.get_peak_memory() / 1e9
    figures = {
        "rate": rate(right),
        "tokens_per_second": mean(speeds),
        "seconds": mean(seconds),
        "memory": Figure(peak, None, None, len(right)),
    }
    return Measured(figures, {"rate": tuple(map(float, right))}, tuple(samples))


def _sample(row: Row, reference: str, text: str, *, right: bool) -> Sample:
    """An answer for a person to read. The question is the last message before the right answer."""
    asked = row["messages"][-2].get("content")
    return Sample(
        shortened(asked if isinstance(asked, str) else ""), shortened(reference), shortened(text), right
    )
