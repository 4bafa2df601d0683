"""Scoring with the whole model in memory and layer by layer: peak memory of each, and whether they agree.

    uv run python bench/layerwise.py [--model dense|moe|tiny_dense] [--sequences 32] [--tokens 128] [--runs 3]

Random sequences on the benchmark's random model, float32, each way in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.build import WORK  # noqa: E402
from bench.inputs import make  # noqa: E402
from bench.probe import peak  # noqa: E402


def score(directory: Path, how: str, sequences: int, length: int) -> dict[str, Any]:
    """The log-prob of every sequence, seconds and peak bytes."""
    from builder.engine.blas import accelerate

    accelerate()
    import mlx.core as mx
    import numpy as np

    from builder.evaluate.worker import scoring
    from builder.evaluate.worker.layerwise import score_by_layer
    from builder.evaluate.worker.questions import Ask
    from builder.evaluate.worker.scorable import load_float32

    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    draw = np.random.default_rng(0)
    asks = [Ask(tuple(draw.integers(0, vocabulary, length).tolist()), length - 8) for _ in range(sequences)]
    found = {}

    def take(index: int, logprobs: mx.array) -> None:
        tokens = mx.array(asks[index].tokens[asks[index].start :])[:, None]
        found[index] = mx.take_along_axis(logprobs, tokens, axis=-1).sum().item()

    start = time.perf_counter()
    model = load_float32(directory)
    (score_by_layer if how == "layers" else scoring.score)(model, asks, take)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak(), "scores": [found[index] for index in range(sequences)]}


def measured(options: argparse.Namespace, how: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", options.model, "--only", how]
    command += ["--sequences", str(options.sequences), "--tokens", str(options.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="dense", choices=["dense", "moe", "tiny_dense"])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("whole", "layers"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    base, _, _ = make(WORK, options.model)
    if options.only:
        print(json.dumps(score(base, options.only, options.sequences, options.tokens)))
        return
    pairs = [(measured(options, "whole"), measured(options, "layers")) for _ in range(options.runs)]
    print("| model | how | seconds | peak GB |\n|---|---|---|---|")
    for name, runs in zip(("whole", "by layer"), zip(*pairs, strict=True), strict=True):
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = statistics.median(run["peak"] for run in runs)
        print(f"| {options.model} | {name} | {seconds:.1f} | {peak / 1e9:.2f} |")
    whole, layers = pairs[-1]
    apart = max(abs(a - b) for a, b in zip(whole["scores"], layers["scores"], strict=True))
    of = max(map(abs, whole["scores"]))
    print(f"\nlargest difference of a sequence's log-prob: {apart:.2g} (of {of:.3g})")


if __name__ == "__main__":
    main()
