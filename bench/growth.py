"""What is not built again, and how cost grows: a new adapter, a no-op, 12 -> 24 -> 48 blocks.

    uv run python bench/growth.py [--model dense|moe|tiny_dense] [--runs 3]

Only our own runs, as whole processes; bench/README.md says how to read the tables.
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

from bench.build import CASES, WORK, Cost, declaration, project, run
from bench.inputs import make


def rebuild(model: str, blocks: int, runs: int, scratch: Path) -> None:
    """A full build, a no-op, and the rebuild after a new adapter on the last third of the blocks."""
    base, first, second = make(WORK, model, blocks=blocks)
    rows: list[tuple[Cost, Cost, Cost]] = []
    for number in range(runs):
        folder = project(scratch / f"rebuild-{number}", declaration(base, first, CASES[0]))
        run("doit", "base:b", "adapter:a", cwd=folder)
        full = run("doit", cwd=folder)
        nothing = run("doit", cwd=folder)
        (folder / "artifacts.toml").write_text(declaration(base, second, CASES[0]))
        rows.append((full, nothing, run("doit", cwd=folder)))
        shutil.rmtree(folder)
    ratio = statistics.median(new.seconds / full.seconds for full, _, new in rows)
    print("| model | blocks | run | seconds | read GB | written GB | of the full build |")
    print("|---|---|---|---|---|---|---|")
    for index, name in enumerate(
        ("full build, 4 variants", "again, nothing to do", "new adapter on the last 8")
    ):
        costs = [row[index] for row in rows]
        mid = sorted(costs, key=lambda cost: cost.seconds)[runs // 2]
        share = f"{ratio:.2f}x" if name.startswith("new adapter") else ""
        moved = f"{mid.read / 1e9:.2f} | {mid.written / 1e9:.2f}"
        print(f"| {model} | {blocks} | {name} | {mid.seconds:.1f} | {moved} | {share} |", flush=True)


def growth(model: str, runs: int, scratch: Path) -> None:
    """Time and peak memory as the number of blocks doubles."""
    print("\n| model | blocks | GB of weights | seconds | seconds/GB | peak GB |\n|---|---|---|---|---|---|")
    for blocks in (12, 24, 48):
        base, adapter, _ = make(WORK, model, blocks=blocks)
        nbytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        costs = []
        for number in range(runs):
            folder = project(scratch / f"growth-{blocks}-{number}", declaration(base, adapter, CASES[0]))
            run("doit", "base:b", "adapter:a", cwd=folder)
            costs.append(run("doit", cwd=folder))
            shutil.rmtree(folder)
        seconds = statistics.median(cost.seconds for cost in costs)
        peak = statistics.median(cost.peak for cost in costs)
        print(
            f"| {model} | {blocks} | {nbytes / 1e9:.2f} | {seconds:.1f} | {seconds / nbytes * 1e9:.1f} "
            f"| {peak / 1e9:.2f} |",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="dense", choices=["dense", "moe", "tiny_dense"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for blocks in (24, 48):
            rebuild(options.model, blocks, options.runs, Path(scratch) / str(blocks))
        growth(options.model, options.runs, Path(scratch))


if __name__ == "__main__":
    main()
