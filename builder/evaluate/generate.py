"""Greedy generation by the target as it is served, each answer checked and timed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.evaluate.measure import Measured
from builder.evaluate.process import Step, untold
from builder.evaluate.questions import Row, prompt
from builder.evaluate.statistics import Figure, mean, rate
from builder.spec import Suite


def generate_all(
    suite: Suite,
    rows: Sequence[Row],
    directory: Path,
    *,
    trust_remote_code: bool,
    step: Step = untold,
) -> Measured:
    """`rate` of right answers; `seconds` a query, `tokens_per_second`, `memory` (the peak of arrays, in GB).

    On a CPU the activations and scales are float32: its kernels for half precision are 50 times slower. The
    quantized weights stay as they are.

    One short query before the first is not timed: it reads the weights.
    """
    import mlx.core as mx
    from mlx_lm import stream_generate
    from mlx_lm.utils import load_model, load_tokenizer

    model, _ = load_model(directory, trust_remote_code=trust_remote_code)
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    tokenizer = load_tokenizer(directory)
    mx.eval(model.parameters())
    right, seconds, speeds = [], [], []
    asked = [row for row in rows if "messages" in row]
    for number, row in enumerate([*asked[:1], *asked]):
        start = time.perf_counter()
        tokens = prompt(tokenizer, row["messages"])
        limit = suite.max_tokens if number else 1
        parts = list(stream_generate(model, tokenizer, tokens, max_tokens=limit))
        if number:
            seconds.append(time.perf_counter() - start)
            speeds.append(float(parts[-1].generation_tps))
            text = "".join(part.text for part in parts)
            right.append(CHECKS[suite.check](text, row["messages"][-1]["content"]))
            step(number, len(asked))
    peak = mx.get_peak_memory() / 1e9
    figures = {
        "rate": rate(right),
        "tokens_per_second": mean(speeds),
        "seconds": mean(seconds),
        "memory": Figure(peak, peak, peak, len(right)),
    }
    return Measured(figures, tuple(map(float, right)))


def same_text(text: str, answer: str) -> bool:
    return text.strip() == answer.strip()


def matches(text: str, pattern: str) -> bool:
    """Whether the whole text is what the regular expression describes."""
    return re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


def same_json(text: str, answer: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(answer))
    except ValueError:
        return False


def same_call(text: str, answer: str) -> bool:
    """The first JSON object in each, wherever it stands: names, arguments, values, in any order."""
    found, expected = _first_object(text), _first_object(answer)
    return found is not None and found == expected


def _first_object(text: str) -> Mapping[str, Any] | None:
    decoder = json.JSONDecoder()
    for at in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, at)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": same_text,
    "regex": matches,
    "json": same_json,
    "tool_call": same_call,
}
