"""Measuring a mixture of experts larger than memory: how close its reference and a target come to the disk.

    uv run python bench/experts.py [--layers 4] [--rows 32] [--tokens 60] [--runs 3] [--before ROWS] [--keep]

Makes a random Qwen3-30B-A3B with fewer layers in bench/work (4 have 6.2 GB), with a LoRA on the last half of
them, builds it with 5 bits, and scores random rows layer by layer, each time in a process of its own with
nothing of the model in the page cache. --before scores ROWS rows token by token too, as mlx does on a CPU.
That takes minutes for each row of a few layers. bench/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.build import WORK, Case, declaration, project, run  # noqa: E402
from bench.inputs import SHAPES, Shape, make_adapter, make_model  # noqa: E402
from bench.probe import peak  # noqa: E402
from builder.evaluate.process import wanted_environment  # noqa: E402

STUDY = Shape(48, 2048, 768, 32, 4, 128, 151936, tied=False, experts=128, active=8)
TINY = replace(SHAPES["tiny_moe"], experts=8)
SCORED = 8  # tokens at the end of each row
HEAD = ("model", "how", "rows", "GB", "seconds", "CPU s", "reading s", "ratio", "peak GB")


def made(folder: Path, shape: Shape) -> tuple[Path, Path, Path]:
    """The base, its adapter and the folder of the target with 5 bits. They are made unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    base = make_model(folder / "base", shape, shard_bytes=2_000_000_000)
    adapter = make_adapter(folder / "adapter", shape, shape.blocks // 2)
    target = folder / "project" / "store" / "models" / "m_q5"
    if not target.exists():
        run("doit", cwd=project(folder / "project", declaration(base, adapter, Case("1 variant", (5,)))))
    return base, adapter, target


def uncached(folder: Path) -> int:
    """Takes the weights of a folder out of the page cache. Returns their bytes."""
    total = 0
    for file in folder.glob("*.safetensors"):
        total += file.stat().st_size
        if hasattr(os, "posix_fadvise"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total


def reading(folder: Path) -> float:
    """Seconds to read the weights of a folder in sequence, from the disk."""
    uncached(folder)
    piece = mmap.mmap(-1, 1 << 24)
    start = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(piece):
                pass
    return time.perf_counter() - start


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, peak bytes and the log-prob of every row. In a process of its own."""
    from builder.engine.blas import accelerate

    accelerate()
    import mlx.core as mx
    import numpy as np

    from builder.evaluate.worker.layerwise import score_by_layer, score_larger
    from builder.evaluate.worker.questions import Ask
    from builder.evaluate.worker.scorable import Scorable, load_scorable
    from builder.evaluate.worker.sources import reference_model

    base, adapter, target = (Path(each) for each in options.paths)
    draw, words = np.random.default_rng(0), json.loads((base / "config.json").read_text())["vocab_size"]
    rows = [tuple(draw.integers(0, words, options.tokens).tolist()) for _ in range(options.rows)]
    asks = [Ask(row, options.tokens - SCORED) for row in rows]
    found = {}

    def take(index: int, logprobs: mx.array) -> None:
        tokens = mx.array(asks[index].tokens[asks[index].start :])[:, None]
        found[index] = mx.take_along_axis(logprobs, tokens, axis=-1).sum().item()

    start = time.perf_counter()
    described = {"directory": str(base), "dequantize": False, "trust_remote_code": False}
    worn = {"name": "a", "base": "b", "path": str(adapter)}

    def load() -> Scorable:
        return reference_model(described, worn) if options.only == "reference" else load_scorable(target)

    if options.plain:
        score_by_layer(load().model, asks, take)
    else:
        score_larger(load, asks, take)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time(),
        "peak": peak(),
        "scores": [found[index] for index in range(options.rows)],
    }


def measured(
    options: argparse.Namespace, paths: Sequence[Path], which: str, *, plain: bool
) -> dict[str, Any]:
    """One run from the disk, and what reading the same files takes, right before it."""
    folder = paths[0] if which == "reference" else paths[2]
    seconds = reading(folder)
    nbytes = uncached(folder)
    rows = options.before if plain else options.rows
    command = [
        sys.executable,
        __file__,
        "--only",
        which,
        "--rows",
        str(rows),
        "--tokens",
        str(options.tokens),
    ]
    command += ["--paths", *map(str, paths)] + (["--plain"] if plain else [])
    env = {**wanted_environment({"layerwise": not plain}), **os.environ}  # as builder.evaluate.process
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "reading": seconds, "nbytes": nbytes, "rows": rows}


def line(which: str, how: str, runs: Sequence[dict[str, Any]]) -> str:
    middle = {key: statistics.median(r[key] for r in runs) for key in ("seconds", "cpu", "reading", "peak")}
    ratio = statistics.median(r["seconds"] / r["reading"] for r in runs)
    cells = [
        which,
        how,
        str(runs[0]["rows"]),
        f"{runs[0]['nbytes'] / 1e9:.2f}",
        f"{middle['seconds']:.1f}",
        f"{middle['cpu']:.1f}",
        f"{middle['reading']:.1f}",
        f"{ratio:.1f}x",
        f"{middle['peak'] / 1e9:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=int, default=0, metavar="ROWS")
    parser.add_argument("--tiny", action="store_true", help="a model of some MB, to try the benchmark itself")
    parser.add_argument("--keep", action="store_true", help="keep the model for the next run")
    parser.add_argument("--folder", type=Path, default=WORK)
    parser.add_argument("--only", choices=("reference", "target"), help=argparse.SUPPRESS)
    parser.add_argument("--paths", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(score(options)))
        return
    shape = replace(TINY if options.tiny else STUDY, blocks=options.layers)
    folder = options.folder / f"experts_{'tiny' if options.tiny else 'study'}_{options.layers}"
    try:
        paths = made(folder, shape)
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for which in ("reference", "target"):
            runs = [measured(options, paths, which, plain=False) for _ in range(options.runs)]
            if options.before:
                before = measured(options, paths, which, plain=True)
                print(line(which, "token by token", [before]))
            print(line(which, "expert by expert", runs), flush=True)
            if options.before:
                pairs = list(zip(before["scores"], runs[0]["scores"], strict=False))
                apart = max(abs(a - b) for a, b in pairs)
                print(f"\nlargest difference of a row's log-prob: {apart:.2g} (of {abs(pairs[0][0]):.3g})\n")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
