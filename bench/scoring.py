"""How long an answer takes to judge: teacher-forced scoring beside mlx_lm.generate, query by query.

    python bench/scoring.py store/models/phase8_4bit --queries 16 --runs 3

Both judge the same queries of the example: does the answer begin as it should, is the tool call exact.
Generation runs the target as it is stored (its own weights, greedy, until the end token); scoring runs its
weights in float32. Each is measured in a process of its own, loading apart, in turn; medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rows(count: int) -> list[dict[str, object]]:
    lines = (ROOT / "example/data/test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:count]]


def score(model: Path, count: int) -> dict[str, object]:
    """All queries in one pass."""
    from builder.evaluate.blas import accelerate

    blas = accelerate()
    import mlx.core as mx
    from mlx_lm.utils import load_tokenizer

    from builder.evaluate.measure import Answers, Choice
    from builder.evaluate.questions import answer_asks
    from builder.evaluate.scoring import load_float32
    from builder.evaluate.scoring import score as run
    from builder.spec import Suite

    start = time.perf_counter()
    weights, tokenizer = load_float32(model), load_tokenizer(model)
    mx.eval(weights.parameters())
    loaded = time.perf_counter()
    asked = rows(count)
    suite = Suite("routing", "choice", None, {"tool": '{"tool":', "direct": "Answer:"})
    parts = [Choice(suite, asked, tokenizer), Answers(answer_asks(asked, tokenizer), "exact")]
    owners = [(part, i) for part in parts for i in range(len(part.asks))]
    run(weights, [p.asks[i] for p, i in owners], lambda n, lp: owners[n][0].take(owners[n][1], lp))
    done = time.perf_counter()
    exact = [bool(value) for value in parts[1].result().rows]
    return {"load": loaded - start, "seconds": (done - loaded) / count, "exact": exact, "blas": blas}


def generate(model: Path, count: int) -> dict[str, object]:
    """One query after the other."""
    import mlx.core as mx
    from mlx_lm import generate as run
    from mlx_lm import load

    from builder.evaluate.questions import prompt

    start = time.perf_counter()
    weights, tokenizer = load(str(model))
    mx.eval(weights.parameters())
    loaded = time.perf_counter()
    exact = []
    for row in rows(count):
        text = run(weights, tokenizer, prompt(tokenizer, row["messages"]), max_tokens=64)
        exact.append(text.strip() == row["messages"][-1]["content"].strip())
    done = time.perf_counter()
    return {"load": loaded - start, "seconds": (done - loaded) / count, "exact": exact}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("score", "generate"))
    args = parser.parse_args()
    if args.only:
        print(json.dumps((score if args.only == "score" else generate)(args.model, args.queries)))
        return 0
    ratios, seconds = [], {"score": [], "generate": []}
    for _ in range(args.runs):
        found = {}
        for how in seconds:
            command = [
                sys.executable,
                __file__,
                str(args.model),
                "--queries",
                str(args.queries),
                "--only",
                how,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            found[how] = json.loads(done.stdout.splitlines()[-1])
            seconds[how].append(found[how]["seconds"])
            shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in found[how].items()}
            shown.pop("exact")
            print(how, shown, flush=True)
        ratios.append(found["generate"]["seconds"] / found["score"]["seconds"])
        same = sum(a == b for a, b in zip(found["score"]["exact"], found["generate"]["exact"], strict=True))
    ours, theirs = (statistics.median(seconds[how]) for how in ("score", "generate"))
    ratio = statistics.median(ratios)
    print(f"seconds a query: score {ours:.2f}, generate {theirs:.2f}; paired ratio {ratio:.1f}; ", end="")
    print(f"same verdict on {same} of {args.queries}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
