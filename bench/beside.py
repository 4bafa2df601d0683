"""The same job by a shell script, DVC, Snakemake and this project: the table of docs/comparison.md.

    uv run python bench/beside.py [--runs 3]

Four variants of the shipped example, as whole processes in new folders: built, again, after a `touch` of
the adapter, after one variant's group size changed. DVC and Snakemake come from `uv tool run`. Medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.build import CASES, declaration, environment, project, sources  # noqa: E402

BIN = Path(sys.executable).parent
DVC, SNAKEMAKE = "dvc==3.67.1", "snakemake==9.27.1"

SCRIPT = """\
set -e
rm -rf models
mlx_lm.fuse --model base --adapter-path adapter --save-path models/f16
for bits in 4 5 6 8; do
  size=64; [ $bits = 8 ] && size=$(cat size)
  mlx_lm.convert --hf-path models/f16 --mlx-path models/q$bits -q --q-bits $bits --q-group-size $size
done
"""
STAGES = """\
stages:
  fuse:
    cmd: mlx_lm.fuse --model base --adapter-path adapter --save-path models/f16
    deps: [base, adapter]
    outs: [models/f16]
  quantize:
    foreach: ${variants}
    do:
      cmd: >-
        rm -rf models/q${item.bits} && mlx_lm.convert --hf-path models/f16 --mlx-path models/q${item.bits}
        -q --q-bits ${item.bits} --q-group-size ${item.group}
      deps: [models/f16]
      outs: ["models/q${item.bits}"]
"""
RULES = """\
configfile: "sizes.yaml"
rule all:
    input: expand("models/q{bits}", bits=[4, 5, 6, 8])
rule fuse:
    input: "base/config.json", "adapter/adapters.safetensors"
    output: temp(directory("models/f16"))
    shell: "mlx_lm.fuse --model base --adapter-path adapter --save-path {output}"
rule quantize:
    input: "models/f16"
    output: directory("models/q{bits}")
    params: group=lambda w: config["sizes"][int(w.bits)]
    shell: "mlx_lm.convert --hf-path {input} --mlx-path {output} -q --q-bits {wildcards.bits}"
           " --q-group-size {params.group}"
"""


@dataclass(frozen=True)
class Way:
    """One way to do the job: `prepare` a folder, run `command`; `resize` changes the groups of 8 bits."""

    name: str
    prepare: Callable[[Path], None]
    command: list[str]
    resize: Callable[[Path, int], object]


def by_script(folder: Path) -> None:
    (folder / "build.sh").write_text(SCRIPT)
    (folder / "size").write_text("64")


def by_dvc(folder: Path) -> None:
    (folder / "dvc.yaml").write_text(STAGES)
    dvc_sizes(folder, 64)
    quietly(["git", "init", "-q"], folder)
    quietly([*tool(DVC), "dvc", "init", "-q"], folder)


def dvc_sizes(folder: Path, size: int) -> None:
    rows = "".join(f"  - {{bits: {b}, group: {size if b == 8 else 64}}}\n" for b in (4, 5, 6, 8))
    (folder / "params.yaml").write_text(f"variants:\n{rows}")


def by_snakemake(folder: Path) -> None:
    (folder / "Snakefile").write_text(RULES)
    snake_sizes(folder, 64)


def snake_sizes(folder: Path, size: int) -> None:
    rows = "".join(f"  {b}: {size if b == 8 else 64}\n" for b in (4, 5, 6, 8))
    (folder / "sizes.yaml").write_text(f"sizes:\n{rows}")


def by_us(folder: Path) -> None:
    project(folder, declaration(folder / "base", folder / "adapter", CASES[0]))


def our_sizes(folder: Path, size: int) -> None:
    toml = folder / "artifacts.toml"
    toml.write_text(toml.read_text().replace("bits = 8\ngroup_size = 64", f"bits = 8\ngroup_size = {size}"))


def tool(what: str) -> list[str]:
    return ["uv", "tool", "run", "--quiet", "--from", what]


WAYS = (
    Way("shell script", by_script, ["bash", "build.sh"], lambda d, n: (d / "size").write_text(str(n))),
    Way("DVC", by_dvc, [*tool(DVC), "dvc", "repro", "-q"], dvc_sizes),
    Way("Snakemake", by_snakemake, [*tool(SNAKEMAKE), "snakemake", "-q", "-c2"], snake_sizes),
    Way("modelkiln", by_us, [str(BIN / "doit")], our_sizes),
)


def quietly(command: list[str], folder: Path) -> None:
    """Raises SystemExit with the output of a command that fails."""
    env = {**environment(), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def timed(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    quietly(command, folder)
    return time.perf_counter() - start


def job(way: Way, scratch: Path) -> list[float]:
    """Seconds to build, again, after a touch, after a change; megabytes of what was written at the end."""
    folder = scratch / way.name.replace(" ", "-")
    base, adapter = sources("example")
    shutil.copytree(base, folder / "base", ignore=shutil.ignore_patterns("artifact.toml"))
    shutil.copytree(adapter, folder / "adapter")
    way.prepare(folder)
    before = disk(folder)
    took = [timed(way.command, folder)]
    written = (disk(folder) - before) / 1e6
    took.append(timed(way.command, folder))
    for file in (folder / "adapter").iterdir():
        os.utime(file)
    took.append(timed(way.command, folder))
    way.resize(folder, 32)
    took.append(timed(way.command, folder))
    shutil.rmtree(folder)
    return [*took, written]


def disk(folder: Path) -> int:
    """Bytes on disk, each file once however many names it has."""
    stats = {(s := file.lstat()).st_ino: s.st_blocks * 512 for file in folder.rglob("*") if file.is_file()}
    return sum(stats.values())


ROWS = (
    "all four variants, seconds",
    "again, seconds",
    "`touch` of the adapter, seconds",
    "one variant's group size changed, seconds",
    "disk after the first build, MB",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for way, name in ((DVC, "dvc"), (SNAKEMAKE, "snakemake")):
        quietly([*tool(way), name, "--version"], ROOT)  # installed before anything is timed
    found: dict[str, list[list[float]]] = {way.name: [] for way in WAYS}
    for _ in range(options.runs):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as scratch:
                found[way.name].append(job(way, Path(scratch)))
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for row, name in enumerate(ROWS):
        medians = [statistics.median(run[row] for run in runs) for runs in found.values()]
        print(f"| {name} | {' | '.join(f'{m:.0f}' if 'MB' in name else f'{m:.1f}' for m in medians)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
