"""How long an answer takes to judge: teacher-forced scoring beside mlx_lm.generate, query by query.

    python bench/scoring.py store/models/phase8_4bit --queries 16 --runs 3

Both judge the same queries of the example: does the answer begin as it should, is the tool call exact.
Scoring runs the target's weights in float32. Generation (greedy, until the end token) runs the target as it
is stored or, with --float32, the very weights and the BLAS of scoring: on CPUs without fast float16 that is
far faster, and the fairer comparison. Each is measured in a process of its own, loading apart, in turn;
medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def rows(count: int) -> list[dict[str, Any]]:
    lines = (ROOT / "example/data/test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:count]]


def score(model: Path, count: int) -> dict[str, object]:
    """All queries in one pass."""
    from builder.engine.blas import accelerate

    blas = accelerate()
    import mlx.core as mx

    from builder.evaluate.worker.measure import Answers, Choice, answer
    from builder.evaluate.worker.questions import answer_asks
    from builder.evaluate.worker.scorable import load_float32
    from builder.evaluate.worker.scoring import score as run
    from builder.evaluate.worker.tokens import tokenizer_of
    from builder.spec.types import Suite

    start = time.perf_counter()
    weights, tokenizer = load_float32(model), tokenizer_of(model)
    mx.eval(weights.parameters())
    loaded = time.perf_counter()
    asked = rows(count)
    suite = Suite("routing", "choice", None, {"tool": '{"tool":', "direct": "Answer:"})
    written = Answers(answer_asks(suite, asked, tokenizer), "exact")
    answer([Choice(suite, asked, tokenizer), written], lambda asks, take: run(weights, asks, take))
    done = time.perf_counter()
    exact = [bool(value) for value in written.result().rows["rate"]]
    return {"load": loaded - start, "seconds": (done - loaded) / count, "exact": exact, "blas": blas}


def generate(model: Path, count: int, *, float32: bool = False) -> dict[str, object]:
    """One query after the other."""
    from builder.engine.blas import accelerate

    blas = accelerate() if float32 else "mlx"
    import mlx.core as mx
    from mlx_lm import generate as run
    from mlx_lm import load

    from builder.evaluate.worker.questions import prompt
    from builder.evaluate.worker.scorable import load_float32
    from builder.spec.types import Suite

    start = time.perf_counter()
    weights, tokenizer = load(str(model), lazy=True)
    if float32:
        weights = load_float32(model)
    mx.eval(weights.parameters())
    loaded = time.perf_counter()
    suite = Suite("written", "generate")
    exact = []
    for row in rows(count):
        text = run(weights, tokenizer, prompt(suite, tokenizer, row), max_tokens=64)
        exact.append(text.strip() == row["messages"][-1]["content"].strip())
    done = time.perf_counter()
    return {"load": loaded - start, "seconds": (done - loaded) / count, "exact": exact, "blas": blas}


def measured(how: str, args: argparse.Namespace) -> dict[str, Any]:
    """One of the two, in a process of its own."""
    command = [sys.executable, __file__, str(args.model), "--queries", str(args.queries), "--only", how]
    command += ["--float32"] if args.float32 else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{how}: load {found['load']:.1f} s, {found['seconds']:.3f} s a query, BLAS of {found['blas']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Scoring beside generation.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="generate with the weights of scoring")
    parser.add_argument("--only", choices=("score", "generate"))
    args = parser.parse_args()
    args.model = args.model.resolve()
    if args.only:
        print(json.dumps(scored_or_generated(args)))
        return 0
    pairs = [(measured("score", args), measured("generate", args)) for _ in range(args.runs)]
    ratio = statistics.median(slow["seconds"] / fast["seconds"] for fast, slow in pairs)
    score_seconds, generate_seconds = (
        statistics.median(one["seconds"] for one in each) for each in zip(*pairs, strict=True)
    )
    fast, slow = pairs[-1]
    same = sum(a == b for a, b in zip(fast["exact"], slow["exact"], strict=True))
    print(
        f"seconds a query: score {score_seconds:.3f}, generate {generate_seconds:.3f}; "
        f"paired ratio {ratio:.1f}; same verdict on {same} of {args.queries}"
    )
    return 0


def scored_or_generated(args: argparse.Namespace) -> dict[str, object]:
    if args.only == "score":
        return score(args.model, args.queries)
    return generate(args.model, args.queries, float32=args.float32)


if __name__ == "__main__":
    sys.exit(main())
