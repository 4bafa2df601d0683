"""KL at equal bytes: uniform, calibrated and allocated variants beside mlx-lm's own methods, in one run.

    python bench/quality.py [--model example|base|moe] [--only NAME ...] [--limit SECONDS] [--samples N]

calibrated: the rounding alone. bits: chosen bits alone, rounded to nearest. target: both. tuned: dwq in
float32 on top of one of them.
r is the KL of a variant over the KL of the log-linear line through uniform 3, 4, 5 and 6 bits at the same
bytes. The rows are held out: example/data/test.jsonl. All variants see the same text: the first rows of
example/data/train.jsonl, 32 pieces of 256 tokens (--samples, --length). mlx-lm's methods get these rows with
the chat template already applied, because they join messages without it. bench/README.md explains the
columns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.build import WORK, environment, project
from bench.frontier import Measured, Ratio, below_line, compared
from bench.quality_models import NAMES, TEST, TRAIN, TRAINED, rendered, sources
from builder.evaluate import results
from builder.evaluate.worker.tokens import tokenizer_of
from builder.keys import Key
from builder.store.layout import Store

SAMPLES, LENGTH = 32, 256  # of the text that every variant sees
UNIFORM = (3, 4, 5, 6)
SIZES = ("4.25", "4.7", "5.0")  # bits per weight
FURTHER = ("3.3", "3.5", "4.3", "5.3", "5.75", "6.0")  # for bits alone
STARTS = ("uniform_4", "calibrated_4", "target_4.7")  # of dwq in float32
RATE = 1e-5  # its learning rate
EVERY_S = 0.1


def plain_name(variant: str) -> str:
    """The variant's name in artifacts.toml, which has no dots."""
    return variant.replace(".", "_")


def declared(samples: int = SAMPLES, length: int = LENGTH) -> dict[str, str]:
    """What each variant declares, by its name in the table."""
    text = f'calibration = "train.jsonl"\nsamples = {samples}\nsequence_length = {length}'
    method = f'bits = 4\ngroup_size = 64\nfrom = "f16"\n{text.replace("train", "rendered")}'
    found = {f"uniform_{bits}": f"bits = {bits}\ngroup_size = 64" for bits in UNIFORM}
    found |= {f"calibrated_{bits}": f"bits = {bits}\ngroup_size = 64\n{text}" for bits in (3, 4, 5)}
    sizes = {size: f'target = "{size}bpw"\ngroup_size = 64\n{text}' for size in (*SIZES, *FURTHER)}
    found |= {f"target_{size}": sizes[size] for size in SIZES}
    found |= {f"bits_{size}": f'{each}\nrounding = "nearest"' for size, each in sizes.items()}
    found |= {
        f"experts_{share}_{criterion}": f'bits = 5\nexperts = {share}\ncriterion = "{criterion}"\n{text}'
        for share in (0.875, 0.75, 0.5)
        for criterion in ("reap", "ean", "frequency")
    }
    dwq = f'method = "dwq"\nfrom = "f16"\nlearning_rate = {RATE}\n{text}'
    found |= {f"tuned_{start}": f'{dwq}\nstart = "{plain_name(start)}"' for start in STARTS}
    found |= {name: f'method = "{name}"\n{method}' for name in ("gptq", "awq", "dwq")}
    return found | {"dynamic": f'method = "dynamic"\n{method}\nhigh_bits = 5\ntarget_bpw = 4.7'}


VARIANTS: Mapping[str, str] = declared()
LEARNED = ("gptq", "awq", "dwq", "dynamic")


@dataclass(frozen=True)
class Row:
    """One line of the table. A variant that was not built has a reason instead of figures."""

    variant: str
    seconds: float
    peak: int
    nbytes: int = 0
    bits_per_weight: float = 0.0
    kl: Ratio | None = None
    rows: tuple[float, ...] = ()
    failed: str = ""

    @property
    def measured(self) -> Measured:
        return Measured(self.nbytes, self.rows)


class Failed(Exception):
    """A command that did not end well, with what it said last."""


def declaration(name: str, chosen: Sequence[str], tables: str, given: Mapping[str, str] = VARIANTS) -> str:
    """The artifacts.toml of one run."""
    names = [plain_name(variant) for variant in chosen]
    source = 'adapter = "a"' if name == "example" else 'base = "b"'
    parts = [tables.strip(), '[variant.f16]\ndtype = "float16"\nintermediate = true']
    parts += [f"[variant.{plain_name(variant)}]\n{given[variant]}" for variant in chosen]
    parts += ['[suite.fidelity]\nkind = "fidelity"\ndata = "test.jsonl"']
    parts += [f'[model.m]\n{source}\nvariants = {json.dumps(["f16", *names])}\nsuites = ["fidelity"]']
    return "\n\n".join(parts) + "\n"


def run(folder: Path, *arguments: str, limit: float | None = None) -> tuple[float, int]:
    """Runs a command of doit. Returns its seconds, and the peak bytes of its largest process.

    Raises Failed.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", "doit", *arguments]
    peaks: dict[int, int] = {}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env=environment(), start_new_session=True
        )
        try:
            while process.poll() is None:
                if limit is not None and time.perf_counter() - started > limit:
                    raise Failed(f"did not end in {limit:.0f} s")
                _note_peaks(process.pid, peaks)
                time.sleep(EVERY_S)
        finally:
            if process.returncode is None:  # its session is its own: nothing else is in it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            output.seek(0)
            said = [line.strip() for line in output if line.strip()]
            raise Failed(f"exit {process.returncode}: {' / '.join(said[-3:])[:300]}")
    return time.perf_counter() - started, max(peaks.values(), default=0)


def _note_peaks(pid: int, peaks: dict[int, int]) -> None:
    """VmHWM of a process and of all processes that it started. Nothing where there is no /proc."""
    here = Path(f"/proc/{pid}")
    try:
        status = (here / "status").read_text()
        children = (here / f"task/{pid}/children").read_text().split()
    except OSError:
        return
    marks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    peaks[pid] = max([peaks.get(pid, 0), *marks])
    for child in children:
        _note_peaks(int(child), peaks)


def measure(folder: Path, variant: str, limit: float | None) -> Row:
    """Builds one variant and measures it. A variant that the folder has keeps the seconds of its build."""
    target, store = f"m_{plain_name(variant)}", Store(folder / "store")
    costs = folder / f"{variant}.cost.json"
    started = time.perf_counter()
    try:
        if not costs.exists():
            costs.write_text(json.dumps(run(folder, f"model:{target}", limit=limit)))
        seconds, peak = json.loads(costs.read_text())
        run(folder, f"eval:{target}")
    except Failed as failed:
        return Row(variant, time.perf_counter() - started, 0, failed=str(failed))
    result = _result(store, target)
    figure = result.figures["kl"]
    assert figure.interval is not None
    nbytes = sum(file.stat().st_size for file in (store.models / target).glob("*.safetensors"))
    return Row(
        variant,
        seconds,
        peak,
        nbytes,
        _bits_per_weight(folder, target),
        Ratio(figure.value, *figure.interval),
        result.rows["kl"],
    )


def _result(store: Store, target: str) -> results.Result:
    """The newest: a kept folder also has the results of former versions."""
    files = sorted(store.evals.glob("*/*.json"), key=lambda file: -file.stat().st_mtime)
    found = (results.read(store, Key(file.stem)) for file in files)
    return next(result for result in found if result and result.target == target)


def _bits_per_weight(folder: Path, target: str) -> float:
    """As `status` says. It ends with 1 while other variants are not built."""
    status = [sys.executable, "-m", "doit", "status", "--json"]
    done = subprocess.run(status, cwd=folder, env=environment(), capture_output=True, text=True)
    rows = json.loads(done.stdout)["targets"]
    return float(next(row["bits_per_weight"] for row in rows if row["target"] == target))


HEAD = ("variant", "MB", "bits/w", "KL", "95 %", "r", "95 % of r", "build s", "peak GB")


def cells(row: Row, uniform: Sequence[Row]) -> list[str]:
    """One line of the table."""
    if row.kl is None:
        return [row.variant, "", "", row.failed.replace("|", "/"), "", "", "", f"{row.seconds:.0f}", ""]
    r = below_line(row.measured, [each.measured for each in uniform])
    return [
        row.variant,
        f"{row.nbytes / 1e6:.2f}",
        f"{row.bits_per_weight:.3f}",
        f"{row.kl.value:.4g}",
        f"{row.kl.low:.3g} to {row.kl.high:.3g}",
        f"{r.value:.3f}",
        f"{r.low:.3f} to {r.high:.3f}",
        f"{row.seconds:.1f}",
        f"{row.peak / 1e9:.2f}",
    ]


def beside(rows: Sequence[Row]) -> list[str]:
    """Sentences: our best row of at most the same bytes, compared with each method of mlx-lm."""
    said = []
    for theirs in rows:
        ours = [
            row
            for row in rows
            if row.kl and row.variant.startswith(("calibrated", "target")) and row.nbytes <= theirs.nbytes
        ]
        if theirs.variant in LEARNED and theirs.kl and ours:
            best = min(ours, key=lambda row: row.kl.value if row.kl else 0.0)
            said.append(f"{best.variant} / {theirs.variant}: KL {compared(best.measured, theirs.measured)}")
    return said


def chosen(only: Sequence[str]) -> list[str]:
    """The variants that `--only` names, whole or by the beginning of a name. The uniform ones always.

    Also those that one of them starts from.
    """
    wanted = [*only, "uniform"] if only else [""]
    found = {name for name in VARIANTS if any(name.startswith(each) for each in wanted)}
    starts = {start for start in STARTS if f"tuned_{start}" in found}
    return [name for name in VARIANTS if name in found | starts]


def prepare(
    folder: Path,
    name: str,
    variants: Sequence[str],
    cache: Path,
    samples: int = SAMPLES,
    length: int = LENGTH,
) -> Path:
    """A project with its data, its base fingerprinted. A folder that has a store goes on with it."""
    tables = sources(name, cache)
    project(folder, declaration(name, variants, tables, declared(samples, length)))
    shutil.copy(TRAIN, folder / "train.jsonl")
    shutil.copy(TEST, folder / "test.jsonl")
    (folder / "rendered.jsonl").touch()
    run(folder, "base:b", *(["adapter:a"] if name == "example" else []))
    base = next((folder / "store/bases").iterdir()) if name != "moe" else cache / TRAINED
    texts = first_of(rendered(base, TRAIN), tokenizer_of(base), samples, length)
    (folder / "rendered.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def first_of(texts: Sequence[str], tokenizer: Any, samples: int, length: int) -> list[str]:
    """The first texts that give so many pieces, and the eighth of them more that dwq holds back."""
    left = (samples + samples // 7 + 1) * length
    kept: list[str] = []
    for text in texts:
        if left <= 0:
            break
        kept.append(text)
        left -= len(tokenizer.encode(text))
    return kept


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="example", choices=NAMES)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--limit", type=float, help="seconds that a build may take")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="pieces of the text, for all variants")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens in each piece")
    parser.add_argument("--cache", type=Path, default=WORK, help="the folder of the trained model")
    parser.add_argument(
        "--folder", type=Path, help="a project to keep; what is built there is not timed anew"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running build ends too
    variants = chosen(options.only)
    if options.model != "moe":  # the others have no experts
        variants = [variant for variant in variants if not variant.startswith("experts")]
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        cache = options.cache.resolve()
        prepare(folder, options.model, variants, cache, options.samples, options.length)
        text = f"{options.samples} pieces of {options.length} tokens"
        print(f"{options.model}, {text}: {platform.platform()}, {os.cpu_count()} cores, load {_load()}\n")
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
        rows: list[Row] = []
        for variant in variants:
            rows.append(measure(folder, variant, options.limit))
            uniform = [row for row in rows if row.variant.startswith("uniform") and row.kl]
            if variant == f"uniform_{UNIFORM[-1]}":
                _print(rows, uniform)
            elif not variant.startswith("uniform"):
                _print(rows[-1:], uniform)
            if options.json:
                options.json.write_text(json.dumps(document(options.model, rows, uniform), indent=1) + "\n")
    print("\n" + "\n".join([*beside(rows), f"load at the end {_load()}"]))


def _print(rows: Sequence[Row], uniform: Sequence[Row]) -> None:
    for row in rows:
        print("| " + " | ".join(cells(row, uniform)) + " |", flush=True)


def document(model: str, rows: Sequence[Row], uniform: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, as JSON values."""
    line = [row.measured for row in uniform]
    found = []
    for row in rows:
        r = asdict(below_line(row.measured, line)) if row.kl and len(line) > 1 else None
        found.append(asdict(row) | {"r": r})
    return {"model": model, "load": _load(), "variants": found}


def _load() -> str:
    return " ".join(f"{each:.2f}" for each in os.getloadavg())


if __name__ == "__main__":
    main()
