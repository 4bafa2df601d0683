"""Data flows one way: who may import whom, and what start-up must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BUILDER = ROOT / "builder"
# From left to right; a module imports only from its own layer or from those before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "keys", "progress", "live", "interrupt", "sizes"),
    (
        "spec",
        "names",
        "paths",
        "toml_lines",
        "toml_file",
        "problems",
        "field",
        "fields",
        "shape",
        "parse",
        "suites",
        "schema",
        "nearby",
        "propose",
        "edit",
    ),
    ("structure", "shards", "record", "survival", "learnable", "overrides"),
    ("resolve",),
    ("sources", "engine", "store"),
    ("plan",),
    (
        "index",
        "project",
    ),
    ("why",),
    ("state",),
    ("asked",),
    ("unchanged", "prepare", "speed", "roots", "preflight", "forecast", "status", "lock", "attest", "card"),
    ("assemble",),
    ("execute", "whole", "prune"),
    ("evaluate", "report", "restore"),
    ("cards",),
    ("release",),
    ("deliver",),
    ("describe", "ready"),
    ("steps",),
    ("tasks",),
    ("commands", "reference", "api"),
)
HEAVY = {
    "mlx",
    "mlx_lm",
    "numpy",
    "transformers",
    "numba",
    "llvmlite",
    "matplotlib",
    "huggingface_hub",
    "tokenizers",
}


def layer(module: str) -> int:
    for index, names in enumerate(LAYERS):
        if module in names:
            return index
    raise AssertionError(f"builder/{module} has no layer: add it to LAYERS and to docs/design.md")


def files() -> list[Path]:
    return sorted(path for path in BUILDER.rglob("*.py") if path.parent != BUILDER or path.stem != "__init__")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(BUILDER)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(BUILDER).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("builder"):
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        for name in names:
            assert layer(name) <= layer(own), f"{own} imports {name}"


def test_the_engine_never_imports_the_store() -> None:
    for path in (BUILDER / "engine").glob("*.py"):
        assert "builder.store" not in path.read_text(), path


def test_loading_the_tasks_loads_nothing_heavy() -> None:
    code = "import sys, dodo; list(dodo.task_artifacts()); print(sorted(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert not HEAVY & loaded
