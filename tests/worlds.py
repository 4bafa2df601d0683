"""Small bases that differ by a seed alone, as a folder or a GGUF, and projects that build them in-process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from builder.console.events import Event
from builder.project.project import Project
from builder.release.delivery import deliver
from tests.sources.gguf.test_importing import META, gguf, model
from tests.tiny import make_base

DECLARATION = """\
[base.b]
SOURCE

[variant.4bit]
bits = 4
group_size = 32

[variant.8bit]
bits = 8
group_size = 32

[model.m]
base = "b"
variants = ["4bit", "8bit"]
"""


def quiet(_: Event) -> None:
    pass


def make_gguf(file: Path, seed: int) -> Path:
    """Another GGUF of the same shapes for each seed."""
    random = np.random.default_rng(seed)
    tensors = {
        name: (kind, shape, random.normal(size=shape).astype("<f4").tobytes())
        for name, (kind, shape, _) in model()[1].items()
    }
    file.write_bytes(gguf(META, tensors))
    return file


def make_source(folder: Path, kind: str, seed: int) -> str:
    """The line that declares it; the same for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "gguf":
        return f'gguf = "{make_gguf(folder / f"{seed}.gguf", seed)}"'
    return f'path = "{make_base(folder / f"base{seed}", layers=2, seed=seed)}"'


def declare(folder: Path, source: str, store: Path | None = None) -> Path:
    """artifacts.toml of a project with that source."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "artifacts.toml"
    place = f'[store]\npath = "{store}"\n\n' if store else ""
    file.write_text(place + DECLARATION.replace("SOURCE", source))
    return file


def make(file: Path, target: str) -> tuple[Project, int]:
    """Builds a target as a run does; how many blocks were made for it."""
    project = Project.load(file)
    results = deliver(project, target, {target}, (), quiet)
    return project, sum(result.made for result in results if result.name == target)


def files_of(project: Project, target: str) -> dict[str, bytes]:
    """What a view holds, but for what says when and where it was made."""
    folder = project.store.models / target
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.suffix not in (".toml", ".md")}


def clean_build(folder: Path, source: str, target: str) -> dict[str, bytes]:
    """The files of a target that is built in an empty store of its own."""
    project, _ = make(declare(folder, source), target)
    return files_of(project, target)
