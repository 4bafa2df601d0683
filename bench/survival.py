"""What measuring the adapter's survival costs: the same build with and without it, as whole processes.

    uv run python bench/survival.py [--model dense|moe|tiny_dense] [--runs 5]

Pairs in turn; the median of the paired ratios is what it costs.
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

from bench.build import CASES, WORK, Case, declaration, project, run
from bench.inputs import make


def seconds(base: Path, adapter: Path, case: Case, folder: Path, *, survival: bool) -> float:
    """One build in a fresh project, its sources fingerprinted before."""
    text = declaration(base, adapter, case) + f"\n[build]\nsurvival = {str(survival).lower()}\n"
    project(folder, text)
    run("doit", "base:b", "adapter:a", cwd=folder)
    cost = run("doit", cwd=folder)
    shutil.rmtree(folder)
    return cost.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="dense", choices=["dense", "moe", "tiny_dense"])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    base, adapter, _ = make(WORK, options.model)
    print("| model | case | with s | without s | survival costs |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for case in CASES:
            pairs = [
                tuple(
                    seconds(base, adapter, case, Path(scratch) / f"{run}-{on}", survival=on)
                    for on in ((True, False) if run % 2 else (False, True))
                )
                for run in range(options.runs)
            ]
            with_, without = zip(
                *(pair if run % 2 else pair[::-1] for run, pair in enumerate(pairs)), strict=True
            )
            cost = statistics.median(a / b for a, b in zip(with_, without, strict=True)) - 1
            print(
                f"| {options.model} | {case.name} | {statistics.median(with_):.2f} "
                f"| {statistics.median(without):.2f} | {100 * cost:+.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
