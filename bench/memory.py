"""Peak memory of calibrated rounding: beside mlx-lm's gptq, and with more and more blocks.

    python bench/memory.py [--model dense|tiny_dense] [--blocks 12 24 48] [--beside 24] [--samples N]

Every line is a build of its own in a fresh project: the same text, 4 bits, group size 64. Only the models
with `--beside` blocks are built with gptq too. The peak is VmHWM of the largest process of `doit`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.build import WORK, project
from bench.inputs import make_model, scaled
from bench.quality import Failed, run
from bench.quality_models import TRAIN, rendered


@dataclass(frozen=True)
class Line:
    """One build: seconds, and the peak in bytes."""

    method: str
    blocks: int
    seconds: float
    peak: int


def declaration(base: Path, method: str, samples: int, length: int) -> str:
    """The artifacts.toml of one build."""
    common = f"bits = 4\ngroup_size = 64\nsamples = {samples}\nsequence_length = {length}"
    if method == "calibrated":
        own = 'calibration = "train.jsonl"'
    else:  # mlx-lm joins messages without the chat template, so it gets them as texts
        own = f'method = "{method}"\nfrom = "f16"\ncalibration = "rendered.jsonl"'
    return (
        f'[base.b]\npath = "{base}"\n\n[variant.f16]\ndtype = "float16"\nintermediate = true\n\n'
        f'[variant.x]\n{common}\n{own}\n\n[model.m]\nbase = "b"\nvariants = ["f16", "x"]\n'
    )


def measure(base: Path, method: str, blocks: int, samples: int, length: int, scratch: Path) -> Line:
    """Builds one model in a project of its own. Raises Failed."""
    folder = project(scratch / f"{method}_{blocks}", declaration(base, method, samples, length))
    shutil.copy(TRAIN, folder / "train.jsonl")
    texts = rendered(base, TRAIN)
    (folder / "rendered.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(folder, "base:b")
    seconds, peak = run(folder, "model:m_x")
    shutil.rmtree(folder)
    return Line(method, blocks, seconds, peak)


def said(lines: Sequence[Line]) -> list[str]:
    """The ratios: to gptq at the same blocks, and of the most to the fewest blocks."""
    ours = {line.blocks: line.peak for line in lines if line.method == "calibrated"}
    theirs = {line.blocks: line.peak for line in lines if line.method == "gptq"}
    found = [
        f"{n} blocks: calibrated / gptq = {ours[n] / theirs[n]:.2f}" for n in sorted(ours) if n in theirs
    ]
    for name, peaks in (("calibrated", ours), ("gptq", theirs)):
        if len(peaks) > 1:
            few, many = min(peaks), max(peaks)
            slope = (peaks[many] - peaks[few]) / (many - few)
            ratio = f"{many} / {few} blocks = {peaks[many] / peaks[few]:.2f}"
            found.append(f"{name}: {ratio}, {slope / 1e6:.1f} MB for each block more")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="dense", choices=("dense", "tiny_dense"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--beside", type=int, nargs="*", default=[24], help="blocks that gptq is built with")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens in each sample")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running build ends too
    WORK.mkdir(exist_ok=True)
    tokens = f"{options.samples} pieces of {options.length} tokens"
    print(f"{options.model}, {tokens}: {platform.platform()}, {os.cpu_count()} cores\n")
    print("| method | blocks | seconds | peak GB |\n|---|---|---|---|", flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for blocks in sorted({*options.blocks, *options.beside}):
            base = make_model(Path(scratch) / f"{options.model}_{blocks}", scaled(options.model, blocks))
            for method in ("calibrated", "gptq")[: 1 + (blocks in options.beside)]:
                try:
                    lines.append(
                        measure(base, method, blocks, options.samples, options.length, Path(scratch))
                    )
                except Failed as failed:
                    print(f"| {method} | {blocks} | {failed} | |", flush=True)
                    continue
                line = lines[-1]
                print(f"| {method} | {blocks} | {line.seconds:.1f} | {line.peak / 1e9:.3f} |", flush=True)
            shutil.rmtree(base)
    print("\n" + "\n".join(said(lines)))


if __name__ == "__main__":
    main()
