"""A project in a real folder with a real store, prepared and built without mlx, in milliseconds.

Its sources are real files, its model is three blocks of a toy, and its blobs are bytes of the right number.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from builder.build.manifests import manifest_of
from builder.keys import Key
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.sources.catalog import structure_key
from builder.sources.facts import Unknown
from builder.store import blobs, records, views
from builder.store.holdings import usable_record
from builder.store.types import FileEntry, Manifest, Record
from builder.weights.structure import Parameter, Quantizable, Structure, TensorSpec, to_text

SHAPES = {
    "embed.weight": (128, 64),
    "layers.0.proj.weight": (64, 128),
    "layers.0.norm.weight": (64,),
    "layers.1.proj.weight": (64, 128),
    "layers.1.norm.weight": (64,),
}
BLOCKS = ("embed", "layers.0", "layers.1")
BASE_BYTES = 2 * (128 * 64 + 2 * (64 * 128 + 64))  # bfloat16
_MATRICES = [name.removesuffix(".weight") for name, shape in SHAPES.items() if len(shape) == 2]
STRUCTURE = Structure(
    "toy",
    tuple(Parameter(TensorSpec(name, "BF16", shape)) for name, shape in SHAPES.items()),
    tuple(Quantizable(path, True, {}) for path in _MATRICES),
    frozenset(_MATRICES),
    "bfloat16",
    False,
    {},
)

DECLARATION = """\
[base.toy]
path = "base"

[adapter.tuned]
base = "toy"
path = "adapter"

[variant.f16]
dtype = "float16"
intermediate = true

[variant.4bit]
bits = 4
group_size = 64

[variant.8bit]
bits = 8
group_size = 64

[model.m]
adapter = "tuned"
variants = ["f16", "4bit", "8bit"]
"""

LEARNED = """
[variant.dwq]
method = "dwq"
from = "f16"
calibration = "text.txt"
bits = 4
group_size = 64
"""


def make_toy(root: Path, declaration: str = DECLARATION) -> Path:
    """The folder of a project; its artifacts.toml."""
    (root / "base").mkdir(parents=True)
    (root / "base" / "config.json").write_text('{"model_type": "toy"}')
    (root / "base" / "model.safetensors").write_bytes(b"weights of the base")
    (root / "base" / "tokenizer.json").write_text("{}")
    save_adapter(root / "adapter")
    (root / "text.txt").write_text("some words")
    file = root / "artifacts.toml"
    file.write_text(declaration)
    return file


def save_adapter(folder: Path, path: str = "layers.1.proj", fill: int = 0, scale: float = 2.0) -> None:
    """A LoRA of rank 1 over one matrix of 64 rows and 128 columns, all its bytes `fill`."""
    folder.mkdir(exist_ok=True)
    parameters = {"rank": 1, "scale": scale, "dropout": 0.0}
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters})
    )
    a, b = {"dtype": "F16", "shape": [128, 1]}, {"dtype": "F16", "shape": [1, 64]}
    header = {
        f"{path}.lora_a": {**a, "data_offsets": [0, 256]},
        f"{path}.lora_b": {**b, "data_offsets": [256, 384]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes([fill]) * 384
    (folder / "adapters.safetensors").write_bytes(data)


def prepared(file: Path) -> Project:
    """As a run leaves it before the first target: the base is inspected."""
    project = Project.load(file)
    for base in project.spec.bases.values():
        located = project.sources.base_identity(base)
        assert not isinstance(located, Unknown)
        blob = blobs.ingest(project.store, [to_text(STRUCTURE).encode()])
        records.write(project.store, Record(structure_key(located.weights), "structure", blob))
    return project


def planned(project: Project, name: str) -> TargetPlan:
    plan = project.plan.targets[name]
    assert isinstance(plan, TargetPlan), plan
    return plan


def make_blocks(project: Project, name: str, count: int | None = None) -> int:
    """Records and blobs of the first `count` blocks (all: None) of a target; how many were not there."""
    plan, made = planned(project, name), 0
    for action in plan.actions[:count]:
        if usable_record(project.store, action.key) is None:
            write(project, action.key, "block", action.size)
            made += 1
    return made


def build(project: Project, name: str) -> Manifest:
    """What a build leaves of a target: records, blobs, its manifest and its view."""
    plan = planned(project, name)
    made = make_blocks(project, name)
    for entry in plan.base.aux:
        blobs.ingest_file(project.store, project.spec.file.parent / "base" / entry.name)
    if plan.needs is None:
        write(project, plan.config, "config", 100)
        manifest = manifest_of(project.store, plan, made)
    else:
        manifest = learned_manifest(project, plan)
    manifest = records.write_manifest(project.store, manifest)
    views.materialize(project.store, project.store.models / name, manifest)
    project.forget_plan()
    return manifest


def learned_manifest(project: Project, plan: TargetPlan) -> Manifest:
    size = 5000
    blob = blobs.ingest(project.store, [random.Random(plan.key).randbytes(size)])
    files = (FileEntry("model.safetensors", blob), *plan.base.aux)
    measures = {"bits_per_weight": 4.5, "shard_bytes": size}
    created = "2025-01-01T00:00:00Z"
    inputs, settings = inputs_of(plan), settings_of(plan)
    return Manifest(plan.key, "target", plan.name, created, files, inputs, settings, {}, measures)


def write(project: Project, key: Key, kind: str, size: int) -> Record:
    """A blob of that many bytes, the same for the same key, and its record."""
    record = Record(key, kind, blobs.ingest(project.store, [random.Random(key).randbytes(size)]))
    records.write(project.store, record)
    return record
