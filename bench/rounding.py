"""Rounding single weights on the device of this machine: this project beside mlx-lm's gptq.

    python bench/rounding.py [--shapes 576x576 576x1536 4096x2048]

Weights are random, and their inputs depend on one another. 4 bits, groups of 64, bfloat16. "error" is the
weighted error over that of the loops on a CPU. Each line is the second run: the first one compiles.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builder.engine.rounding.weight import Rounded, round_weight
from builder.spec.types import Quantization

FOUR = Quantization(4, 64)


def drawn(rows: int, columns: int) -> tuple[Any, Any]:
    """A weight, and inputs [tokens, columns] for it."""
    rng = np.random.default_rng([rows, columns])
    mixed = np.eye(columns) + 0.05 * rng.standard_normal((columns, columns))
    inputs = rng.standard_normal((2 * columns, columns)) @ mixed * rng.uniform(0.2, 3, columns)
    return (0.02 * rng.standard_normal((rows, columns))).astype(np.float32), inputs.astype(np.float32)


def seconds(run: Callable[[], object]) -> float:
    """Of the second run."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def by_gptq(weight: Any, inputs: Any) -> None:
    from mlx_lm.quant.gptq import gptq_quantize

    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model.layers[0].weight = mx.array(weight).astype(mx.bfloat16)
    made, _ = gptq_quantize(model, mx.array(inputs)[None], 4, 64, 6, 64)
    mx.eval(made.parameters())


def loss(made: Rounded, weight: Any, moments: Any) -> float:
    off = (made.weight() - weight).astype(np.float64)
    return float((off @ moments * off).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["576x576", "576x1536", "4096x2048"])
    options = parser.parse_args(arguments)
    print(f"{mx.default_device()}\n\n| weight | ours s | gptq s | ratio | error |\n|---|---|---|---|---|")
    for shape in options.shapes:
        weight, inputs = drawn(*map(int, shape.split("x")))
        moments = (inputs.T @ inputs / len(inputs)).astype(np.float32)
        made: list[Rounded] = []
        ours = seconds(lambda: made.append(round_weight(weight, moments, FOUR, mx.bfloat16)))  # noqa: B023
        theirs = seconds(lambda: by_gptq(weight, inputs))  # noqa: B023
        loops = round_weight(weight, moments, FOUR, mx.bfloat16, compiled=True)
        error = loss(made[-1], weight, moments) / loss(loops, weight, moments)
        print(f"| {shape} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f}x | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
