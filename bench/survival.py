"""What measuring the adapter's survival costs: the same build with and without it, as whole processes.

    uv run python bench/survival.py [--model dense|moe|tiny_dense] [--runs 5]

Pairs in turn; the medians of the paired ratios are what it costs: in seconds and, less noisy, in CPU seconds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.build import CASES, WORK, Case, Cost, declaration, project, run
from bench.inputs import make


def build(base: Path, adapter: Path, case: Case, folder: Path, *, survival: bool) -> Cost:
    """One build in a fresh project, its sources fingerprinted before."""
    text = declaration(base, adapter, case) + f"\n[build]\nsurvival = {str(survival).lower()}\n"
    project(folder, text)
    run("doit", "base:b", "adapter:a", cwd=folder)
    cost = run("doit", cwd=folder)
    shutil.rmtree(folder)
    return cost


def more(pairs: Sequence[tuple[float, float]]) -> str:
    return f"{100 * (statistics.median(a / b for a, b in pairs) - 1):+.1f} %"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="dense", choices=["dense", "moe", "tiny_dense"])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    base, adapter, _ = make(WORK, options.model)
    print("| model | case | with s | without s | survival costs | of CPU |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for case in CASES:
            pairs = []
            for run in range(options.runs):
                made = {
                    on: build(base, adapter, case, Path(scratch) / f"{run}-{on}", survival=on)
                    for on in ((True, False) if run % 2 else (False, True))
                }
                pairs.append((made[True], made[False]))
            with_, without = (
                statistics.median(cost.seconds for cost in each) for each in zip(*pairs, strict=True)
            )
            wall, cpu = (
                more([(a.seconds, b.seconds) for a, b in pairs]),
                more([(a.cpu, b.cpu) for a, b in pairs]),
            )
            print(
                f"| {options.model} | {case.name} | {with_:.2f} | {without:.2f} | {wall} | {cpu} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
