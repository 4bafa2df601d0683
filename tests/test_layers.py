"""Data flows one way: which package may use which, and what start-up must not load.

`python tests/test_layers.py` prints the structure: packages, floors, arrows and circles.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "builder"

# One row for each package, from the bottom up: a module imports only from its own row and from rows above it
# in this list. Modules at the root of the package have rows of their own.
ROWS: tuple[str, ...] = (
    "errors",
    "keys",
    "machine",
    "console",
    "spec",
    "store.disk",
    "store",
    "store.care",
    "remote",
    "weights",
    "gguf",
    "sources.gguf",
    "sources.adapters",
    "sources",
    "plan",
    "engine.kernels",
    "engine",
    "training",
    "project",
    "build",
    "evaluate",
    "evaluate.worker",
    "release",
    "cluster",
    "report",
    "publish.gguf",
    "publish",
    "scaffold",
    "tasks",
    "commands",
    "api",
    "__init__",
)
# What a package must not use although it stands below.
NEVER: Mapping[str, tuple[str, ...]] = {
    "engine": ("store", "sources"),
    "training": ("store", "sources"),
    "report": ("cluster", "build", "engine", "evaluate.worker"),
    "plan": ("store.care",),
}
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
    "obstore",
    "cryptography",
    "distributed",
    "dask",
    "keyring",
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name, without the package's own, of every module; `__init__` goes by its package's name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a module imports: at the top, inside functions, for types, relative or not."""
    package = [PACKAGE, *name.split(".")]
    if path.stem != "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            wanted = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in wanted:
            if full == PACKAGE or full.startswith(f"{PACKAGE}."):
                yield _module(full.removeprefix(PACKAGE).removeprefix("."), known)


def _module(dotted: str, known: Mapping[str, Path]) -> str:
    """The module that holds a dotted name: the name itself, or what stands before its last part."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted or "__init__"


def row(module: str) -> str:
    """The row that covers a module: its own, else that of the innermost package around it."""
    name = module
    while name not in ROWS:
        name = name.rpartition(".")[0]
        if not name:
            raise AssertionError(f"no row covers {module}: add it to ROWS and to docs/design.md")
    return name


@cache
def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    known = modules(root)
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(group := stack[at:]) > 1:
                found.append(sorted(group))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    own = row(module)
    for other in arrows()[module]:
        assert ROWS.index(row(other)) <= ROWS.index(own), f"{module} imports {other}, which stands above it"
        forbidden = NEVER.get(own.split(".")[0], ())
        hit = [f for f in forbidden if other == f or other.startswith(f"{f}.")]
        assert not hit, f"{module} imports {other}: {own} never uses {hit[0]}"


def test_no_import_circle() -> None:
    """Imports inside functions count: a circle that is only put off is a circle."""
    assert circles(arrows()) == []


def test_few_modules_stay_at_the_root() -> None:
    assert (
        len([name for name in modules() if "." not in name and (ROOT / PACKAGE / f"{name}.py").is_file()])
        <= 5
    )


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    """What the rules above cannot see, they cannot forbid."""
    package = tmp_path / PACKAGE
    (package / "console").mkdir(parents=True)
    (package / "store").mkdir()
    for name in ("__init__.py", "errors.py", "console/__init__.py", "store/__init__.py", "store/layout.py"):
        (package / name).write_text("")
    for number, text in enumerate(
        (
            "import builder.store.layout",
            "import builder.store.layout as there",
            "from builder.store import layout",
            "from builder.store.layout import Store",
            "from ..store import layout",
            "from ..store.layout import Store",
            "def later():\n    from builder.store import layout",
            "def later():\n    import builder.store.layout",
            "if TYPE_CHECKING:\n    from builder.store.layout import Store",
        )
    ):
        (package / "console" / f"way{number}.py").write_text(text)
    graph = arrows.__wrapped__(tmp_path)
    seen = [name for name, others in graph.items() if "store.layout" in others]
    assert seen == [f"console.way{number}" for number in range(9)]
    (package / "odd.py").write_text("")
    with pytest.raises(AssertionError, match="no row covers odd"):
        row("odd")
    (package / "store" / "layout.py").write_text("from builder.console import way0")
    assert any(
        {"console.way0", "store.layout"} <= set(group) for group in circles(arrows.__wrapped__(tmp_path))
    )


def test_loading_the_tasks_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "artifacts.toml").write_text((ROOT / "artifacts.toml").read_text())
    code = (
        "import sys; from builder.tasks import load; config, tasks = load('artifacts.toml'); list(tasks()); "
        "print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert "builder.tasks.graph" in loaded
    assert not HEAVY & loaded


def main() -> None:
    """The structure in numbers."""
    graph = arrows()
    rooms = {name: row(name) for name in graph}
    between = {(rooms[a], rooms[b]) for a, others in graph.items() for b in others if rooms[a] != rooms[b]}
    floors: dict[str, int] = {}
    for name in ROWS:
        floors[name] = 1 + max((floors[b] for a, b in between if a == name and b in floors), default=0)
    sizes = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values())
    for name in reversed(ROWS):
        count = sum(room == name for room in rooms.values())
        print(f"floor {floors[name]:2}  {name:16} {count:3} modules")
    imported = sum(len(others) for others in graph.values())
    print(f"{len(graph)} modules, {imported} imports, {len(between)} arrows between rows")
    print(f"{max(floors.values())} floors, {len(circles(graph))} circles")
    print(f"lines of a file: median {sizes[len(sizes) // 2]}, largest {sizes[-1]}")


if __name__ == "__main__":
    main()
