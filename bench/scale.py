"""A model of the study's shape, as large as the disk allows: how close a build comes to the disk's own speed.

    uv run python bench/scale.py [--gb 8 | --layers N] [--narrow] [--variants 1 4] [--runs 3] [--json FILE]
                                  [--touch GB]

Makes a random Qwen3-30B-A3B with fewer layers in bench/work (30 GB have 24 layers), with a LoRA on the last
two thirds of them, and deletes it at the end unless --keep. Each run is a process of its own with an empty
store and nothing of the base in the page cache. bench/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.build import FOUR, WORK, Case, Cost, declaration, project, run  # noqa: E402
from bench.inputs import Shape, make_adapter, tensors, write_settings  # noqa: E402
from builder.store.disk import buffers  # noqa: E402

STUDY = Shape(48, 2048, 768, 32, 4, 128, 151936, tied=False, experts=128, active=8)
NARROW = replace(STUDY, hidden=512, feed_forward=192, heads=8, kv_heads=2, vocabulary=16384)
SHARD = 4_000_000_000  # bytes, as the hub's client cuts checkpoints
PIECE = 1 << 24
DRAWN = 1 << 26  # bytes of random weights, of which every tensor is a window of its own
HEAD = (
    "layers", "GB", "variants", "run", "seconds", "s/GB", "of floor", "floor s", "user s", "system s",
    "million faults", "peak GB", "read GB", "written GB",
)  # fmt: skip
EITHER = {1: Case("1 variant", (5,)), 4: Case("4 variants", FOUR)}


@dataclass(frozen=True)
class Row:
    """One kind of run at one size: the median run, and what the disk alone takes for the same bytes."""

    layers: int
    size: int
    variants: int
    run: str
    cost: Cost
    floor: float
    share: float

    def cells(self) -> list[str]:
        cost = self.cost
        return [
            str(self.layers),
            f"{self.size / 1e9:.1f}",
            str(self.variants),
            self.run,
            f"{cost.seconds:.1f}",
            f"{cost.seconds / self.size * 1e9:.2f}",
            f"{100 * self.share:.0f} %",
            f"{self.floor:.1f}",
            f"{cost.cpu - cost.system:.1f}",
            f"{cost.system:.1f}",
            f"{cost.faults / 1e6:.2f}",
            f"{cost.peak / 1e9:.2f}",
            f"{cost.read / 1e9:.2f}",
            f"{cost.written / 1e9:.2f}",
        ]


# -- the model -------------------------------------------------------------------------------------------


def layer_bytes(shape: Shape) -> tuple[int, int]:
    """Bytes of one layer, and of what lies outside of the layers."""
    found = [(name, 2 * math.prod(size)) for name, size in tensors(replace(shape, blocks=1))]
    inside = sum(nbytes for name, nbytes in found if ".layers." in name)
    return inside, sum(nbytes for _, nbytes in found) - inside


def make_base(folder: Path, shape: Shape) -> Path:
    """Write the checkpoint as transformers does: shards in the order of the layers, each sorted by name."""
    if folder.exists():
        return folder
    work = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    drawn = np.random.default_rng(0).standard_normal(DRAWN // 2, np.float32) * np.float32(0.02)
    window = memoryview((drawn.view(np.uint32) >> 16).astype(np.uint16)).cast("B")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in tensors(shape):
        if shards[-1] and filled + 2 * math.prod(size) > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += 2 * math.prod(size)
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys((name for name, _ in shard), file)
        _write_shard(work / file, dict(sorted(shard)), window)
    index = {"metadata": {}, "weight_map": places}
    (work / "model.safetensors.index.json").write_text(json.dumps(index))
    write_settings(work, shape)
    work.rename(folder)
    return folder


def _write_shard(path: Path, shard: Mapping[str, tuple[int, ...]], window: memoryview) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in shard.items():
        nbytes = 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in shard.items():
            for part in _windows(name, 2 * math.prod(size), window):
                file.write(part)
        os.fsync(file.fileno())


def _windows(name: str, nbytes: int, window: memoryview) -> Iterator[memoryview]:
    """Bytes that no other tensor has: they begin where the tensor's name says."""
    start = zlib.crc32(name.encode()) % (len(window) // 2) & ~1
    while nbytes:
        part = window[start : start + nbytes]
        yield part
        nbytes -= len(part)
        start = (start * 31 + 7 * 4096) % (len(window) // 2) & ~1


# -- the disk --------------------------------------------------------------------------------------------


def evict(folder: Path) -> None:
    """Takes the files of a folder out of the page cache, where the system can."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_floor(base: Path, read: int, written: int, folder: Path) -> float:
    """Seconds to read that much of the shards and then write that much, in sequence, past the page cache.

    The piece is random, because a disk or what is below it may know how to store zeros. It lies in huge
    pages, as the buffers of a build do.
    """
    piece = buffers.new(PIECE)
    piece.write(os.urandom(PIECE))
    direct = getattr(os, "O_DIRECT", 0)
    start = time.perf_counter()
    left = read
    while left > 0:
        for shard in sorted(base.glob("*.safetensors")):
            fd = os.open(shard, os.O_RDONLY | direct)
            try:
                while left > 0 and (got := os.readv(fd, [piece])):
                    left -= got
                    if got < PIECE:
                        break
            finally:
                os.close(fd)
    path = folder / "floor"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | direct)
    try:
        for _ in range(max(1, written // PIECE)):
            os.write(fd, piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def refuse_if_too_small(size: int, variants: Sequence[int], folder: Path) -> None:
    """Ends the program with the numbers, unless the base and the largest build fit on the disk."""
    built = max(sum(bits + 0.5 for bits in EITHER[v].bits) / 16 for v in variants)
    needed = int(size * (1 + max(built, 1 / 3)) + (1 << 30))
    there = sum(p.stat().st_size for p in folder.glob("**/*.safetensors")) if folder.exists() else 0
    free = shutil.disk_usage(WORK).free + there
    if needed > free:
        raise SystemExit(
            f"scale.py: a model of {size / 1e9:.1f} GB and what is built of it need {needed / 1e9:.1f} GB,"
            f" but {WORK} has {free / 1e9:.1f} GB free. --gb {free / 1e9 / (needed / size):.0f} fits."
        )


# -- the runs --------------------------------------------------------------------------------------------


def touch(gigabytes: float) -> None:
    """Lets a program use that much memory and end: right after it a virtual machine still has it."""
    if gigabytes:
        code = f"import numpy as n; n.ones({int(gigabytes * 1e9)}, n.uint8)"
        subprocess.run([sys.executable, "-c", code], check=True)


def measure(
    base: Path, adapter: Path, case: Case, scratch: Path, layers: int, runs: int, used: float
) -> list[Row]:
    """The first build, fingerprint included, and the pass over a base that is known.

    Each run stands between two floors, and is compared with their mean: the disk is not always equally fast.
    used: GB of memory that another program uses right before each run.
    """
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    written = int(size * sum(bits + 0.5 for bits in case.bits) / 16)
    found: dict[str, list[tuple[Cost, float]]] = {"first build": [], "pass": []}
    before = disk_floor(base, size, written, scratch)
    for _ in range(runs):
        for kind, costs in found.items():
            folder = project(scratch / "run", declaration(base, adapter, case))
            if kind == "pass":
                run("doit", "base:b", "adapter:a", cwd=folder)
            evict(base)
            touch(used)
            cost = run("doit", cwd=folder)
            shutil.rmtree(folder)
            after = disk_floor(base, size, written, scratch)
            costs.append((cost, (before + after) / 2))
            print(f"{kind}: {cost.seconds:.1f} s between {before:.1f} and {after:.1f} s", file=sys.stderr)
            before = after
    rows = []
    for kind, costs in found.items():
        cost, _ = sorted(costs, key=lambda pair: pair[0].seconds)[(runs - 1) // 2]
        share = statistics.median(low / each.seconds for each, low in costs)
        low = statistics.median(low for _, low in costs)
        rows.append(Row(layers, size, len(case.bits), kind, cost, low, share))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gb", type=float, default=8, help="size of the base (default 8)")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of layers, in place of --gb")
    parser.add_argument("--narrow", action="store_true", help="a quarter of the width, for many layers")
    parser.add_argument("--variants", type=int, nargs="+", default=[1, 4], choices=[1, 4])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--touch", type=float, default=0, help="GB of memory that a program uses right before each run"
    )
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--keep", action="store_true", help="keep the model in bench/work")
    options = parser.parse_args(arguments)
    shape = NARROW if options.narrow else STUDY
    inside, outside = layer_bytes(shape)
    WORK.mkdir(exist_ok=True)
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    print(f"{machine}, medians of {options.runs} runs, each beside its floor\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    rows: list[Row] = []
    for layers in options.layers or [max(1, round((options.gb * 1e9 - outside) / inside))]:
        home = WORK / f"scale_{'narrow' if options.narrow else 'study'}_{layers}"
        refuse_if_too_small(outside + layers * inside, options.variants, home)
        this = replace(shape, blocks=layers)
        try:
            base = make_base(home / "base", this)
            adapter = make_adapter(home / "adapter", this, max(1, layers * 2 // 3))
            for variants in options.variants:
                made = measure(base, adapter, EITHER[variants], home, layers, options.runs, options.touch)
                for row in made:
                    print("| " + " | ".join(row.cells()) + " |", flush=True)
                rows += made
        finally:
            if not options.keep:
                shutil.rmtree(home, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
