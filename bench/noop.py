"""How long nothing takes: `doit`, `doit status`, `doit list`, completion, with many targets.

    python bench/noop.py [--targets 5 100 1000] [--runs 7] [--folder /tmp/noop] [--json FILE]

Makes a project of 5 variants x N/5 adapters over a base of 48 layers and about 60 GB, with a complete store
of sparse files: right names, sizes, seals, records, manifests and hard-linked views, no bytes. The floor
beside them is `doit list` of an empty dodo.py. Figures are medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.build import environment
from builder.keys import Digest, digest_bytes
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import now
from builder.sources.catalog import structure_key
from builder.store import blobs, records, seals
from builder.store.disk.identity import identity
from builder.store.statcache import _sum
from builder.store.types import Blob, FileEntry, Manifest, Record, manifest_to_text, record_to_text
from builder.weights.structure import Parameter, Quantizable, Structure, TensorSpec, to_text

LAYERS, HIDDEN, INNER, VOCABULARY = 48, 6144, 24576, 151_936
VARIANTS = {"4bit": 4, "5bit": 5, "6bit": 6, "8bit": 8, "3bit": 3}
COMMANDS = ("list", "", "status", "plan")


def structure() -> Structure:
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{at}.self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{at}.mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{at}.mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    wide = tuple(name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2)
    return Structure(
        "bench",
        tuple(Parameter(TensorSpec(name, "BF16", shape)) for name, shape in shapes.items()),
        tuple(Quantizable(path, True, {}) for path in wide),
        frozenset(wide),
        "bfloat16",
        False,
        {},
    )


def make_project(root: Path, targets: int) -> None:
    """Everything that a build would have left, without the bytes."""
    from tests.tiny import make_adapter

    base = root / "base"
    base.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_text("{}")
    sparse(base / "model.safetensors", structure().nbytes)
    lines = ['[base.big]\npath = "base"\n']
    lines += [f"[variant.{name}]\nbits = {bits}\ngroup_size = 64\n" for name, bits in VARIANTS.items()]
    for number in range(targets // len(VARIANTS)):
        make_adapter(root / f"adapters/a{number}", layers=tuple(range(32, 48)), rank=1, seed=1000 * number)
        lines.append(f'[adapter.a{number}]\nbase = "big"\npath = "adapters/a{number}"\n')
        lines.append(f'[model.m{number}]\nadapter = "a{number}"\nvariants = {json.dumps(list(VARIANTS))}\n')
    (root / "artifacts.toml").write_text("\n".join(lines))
    (root / "dodo.py").write_text(
        'from builder.tasks import load\nDOIT_CONFIG, task_artifacts = load("artifacts.toml")\n'
    )
    shutil.copy(Path(__file__).parent.parent / "pyproject.toml", root)
    os.chdir(root)
    project = Project.load()
    know(project, base / "model.safetensors")
    weights = project.sources.base_identity(project.spec.bases["big"]).weights  # type: ignore[union-attr]
    text = to_text(structure()).encode()
    blob = blobs.ingest(project.store, [text])
    records.write(project.store, Record(structure_key(weights), "structure", blob, {}))
    for adapter in project.spec.adapters.values():
        project.sources.adapter_facts(adapter)
        project.sources.note_adapter_checked(adapter)
    for plan in project.plan.resolved():
        fill(project, plan)


def know(project: Project, path: Path) -> None:
    """Pretends that the file has been hashed."""
    status = path.stat()
    row = (str(path.absolute()), identity(status).text, time.time_ns() + 10**10, digest_bytes(b"base"))
    project.cache._execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*row, _sum(*row)))


def fill(project: Project, plan: TargetPlan) -> None:
    store = project.store
    made = [(action.file, action.key, action.size) for action in plan.actions]
    made += [("config.json", plan.config, 2000)]
    entries = []
    for name, key, size in made:
        blob = fake_blob(project, f"blob {key}", size)
        file = records.path(store, key)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(seals.sealed(record_to_text(Record(key, "block", blob, {"made": now()}))))
        entries.append(FileEntry(name, blob))
    index = fake_blob(project, f"index {plan.target.variant.name}", 90_000)
    entries.append(FileEntry("model.safetensors.index.json", index))
    for entry in plan.base.aux:
        real(project, entry.blob)
        entries.append(entry)
    files = tuple(sorted(entries, key=lambda entry: entry.name))
    measures = {"bits_per_weight": 5.5, "shard_bytes": plan.size, "blocks": 51, "blocks_reused": 0}
    manifest = Manifest(
        plan.key, "target", plan.name, now(), files, inputs_of(plan), settings_of(plan), {}, measures
    )
    text = seals.sealed(manifest_to_text(manifest))
    place = records.manifest_path(store, plan.key)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(text)
    view = store.models / plan.name
    view.mkdir(parents=True)
    (view / "artifact.toml").write_bytes(text)
    for entry in files:
        (view / entry.name).hardlink_to(blobs.path(store, entry.blob.digest))


def fake_blob(project: Project, text: str, size: int) -> Blob:
    digest = digest_bytes(text.encode())
    real(project, Blob(digest, size))
    return Blob(digest, size)


def real(project: Project, blob: Blob) -> None:
    path = blobs.path(project.store, Digest(blob.digest))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sparse(path, blob.size)
        seals.close(str(path), path.stat(), blob.digest)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def measure(
    root: Path,
    arguments: list[str],
    runs: int,
    program: str = "doit",
    before: Callable[[], object] = lambda: None,
) -> float:
    """Median seconds of a command, each after `before`. Raises SystemExit with its output where it fails."""
    times = []
    for _ in range(runs):
        before()
        start = time.perf_counter()
        done = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            cwd=root,
            env=environment(),
            capture_output=True,
            text=True,
        )
        times.append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(
                f"{program} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=[5, 100, 1000])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/noop"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    empty = asked.folder / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    (empty / "dodo.py").write_text("")
    floor = measure(empty, ["list"], asked.runs)
    results = {"doit list, empty dodo.py": {"0": round(floor, 3)}}
    print(f"doit list, empty dodo.py: {floor:.3f} s")
    for targets in asked.targets:
        root = asked.folder / str(targets)
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)
            make_project(root.absolute(), targets)
            (root / "done").touch()
        for command in COMMANDS:
            words = [command] if command else []
            seconds = measure(root, words, asked.runs)
            results.setdefault(f"doit {command}".strip(), {})[str(targets)] = round(seconds, 3)
            print(f"{targets:5} targets, doit {command or '(no-op)':8} {seconds:.3f} s", flush=True)
        seconds = measure(root, ["_complete", "builder", "build", ""], asked.runs, "builder")
        results.setdefault("completion", {})[str(targets)] = round(seconds, 3)
        print(f"{targets:5} targets, completion    {seconds:.3f} s", flush=True)
        small = [*root.glob("adapters/*/*"), *root.glob("base/*.json"), root / "artifacts.toml"]

        def touch(files: list[Path] = small) -> None:
            for file in files:
                os.utime(file)

        seconds = measure(root, [], asked.runs, before=touch)
        results.setdefault("doit, just after a touch of all but the weights", {})[str(targets)] = round(
            seconds, 3
        )
        print(f"{targets:5} targets, doit just after a touch of all but the weights: {seconds:.3f} s")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
