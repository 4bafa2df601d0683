"""Writes what makes `doit` know a project: dodo.py, doit's configuration, and a line in .gitignore.

A missing file is written. An existing file belongs to its owner and stays as it is. The owner is told what to
add.
"""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from builder.commands import COMMANDS
from builder.tasks.graph import DATABASE

DODO = 'from builder.tasks import load\nDOIT_CONFIG, task_artifacts = load("artifacts.toml")\n'
DODO_MERGED = (
    "from builder.tasks import load\n"
    'CONFIG, task_artifacts = load("artifacts.toml")\n'
    "DOIT_CONFIG = {**CONFIG, **DOIT_CONFIG}  # below your own DOIT_CONFIG\n"
)
_SUBTASKS = "subtasks = true"  # `doit list` shows targets, not only groups


def wire(folder: Path) -> Iterator[str]:
    """Writes the missing files in `folder`. Yields lines for the person."""
    yield from _wire_dodo(folder / "dodo.py")
    yield from _wire_commands(folder)
    yield from _wire_git(folder)


def loads_artifacts(dodo: Path) -> bool:
    """Whether a dodo.py imports tasks from this package. The file is parsed, not run."""
    return any(_imports_tasks(node) for node in ast.walk(_parsed(dodo)))


# -- dodo.py -----------------------------------------------------------------------------------------------


def _wire_dodo(dodo: Path) -> Iterator[str]:
    if not dodo.exists():
        dodo.write_text(DODO, encoding="utf-8")
        yield "dodo.py: `doit` builds"
    elif not loads_artifacts(dodo):
        lines = DODO_MERGED if _assigns_config(_parsed(dodo)) else DODO
        yield "dodo.py is yours and stays as it is: `builder build` builds. For `doit` to build too, add:"
        yield from _indented(lines)
        yield "  Then a bare `doit` builds the targets; `default_tasks` in DOIT_CONFIG says otherwise."


def _parsed(dodo: Path) -> ast.Module:
    try:
        return ast.parse(dodo.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _imports_tasks(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(module="builder.tasks"):
            return True
        case ast.ImportFrom(module="builder", names=names):
            return any(alias.name == "tasks" for alias in names)
        case ast.Import(names=names):
            return any(alias.name == "builder.tasks" for alias in names)
    return False


def _assigns_config(module: ast.Module) -> bool:
    targets = [t for node in module.body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(target, ast.Name) and target.id == "DOIT_CONFIG" for target in targets)


# -- commands ----------------------------------------------------------------------------------------------


def _wire_commands(folder: Path) -> Iterator[str]:
    pyproject, cfg = _pyproject(folder / "pyproject.toml"), _cfg(folder / "doit.cfg")
    known = {**pyproject["command"], **cfg["command"]}
    missing = {name: place for name, place in COMMANDS.items() if known.get(name) != place}
    listing = {**pyproject["list"], **cfg["list"]}
    if not missing and listing:
        return
    taken = sorted(missing.keys() & known.keys())
    if not (folder / "doit.cfg").exists() and not taken:  # doit reads both files, and doit.cfg last
        (folder / "doit.cfg").write_text("\n".join([*_ini(missing, listing), ""]), encoding="utf-8")
        yield "doit.cfg: `doit status`, `doit why`, `doit plan`"
        return
    in_cfg = (folder / "doit.cfg").exists() and (cfg["command"] or not pyproject["command"])
    lines = _ini(missing, listing) if in_cfg else _toml(missing, listing)
    instead = f" (instead of what it says of {', '.join(taken)})" if taken else ""
    file = "doit.cfg" if in_cfg else "pyproject.toml"
    yield f"{file} is yours and stays as it is. For `doit status` and the others, add to it{instead}:"
    yield from _indented("\n".join(lines))


def _ini(missing: Mapping[str, str], listing: Mapping[str, object]) -> list[str]:
    commands = ["[COMMAND]", *(f"{name} = {place}" for name, place in missing.items())] if missing else []
    return [*commands, *([] if listing else ["[list]", _SUBTASKS])]


def _toml(missing: Mapping[str, str], listing: Mapping[str, object]) -> list[str]:
    head = "[tool.doit.plugins.command]"
    commands = [head, *(f'{name} = "{place}"' for name, place in missing.items())] if missing else []
    return [*commands, *([] if listing else ["[tool.doit.commands.list]", _SUBTASKS])]


def _pyproject(file: Path) -> Mapping[str, Mapping[str, object]]:
    try:
        doit = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("doit", {})
        return {
            "command": dict(doit.get("plugins", {}).get("command", {})),
            "list": dict(doit.get("commands", {}).get("list", {})),
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {"command": {}, "list": {}}


def _cfg(file: Path) -> Mapping[str, Mapping[str, object]]:
    parser = ConfigParser(allow_no_value=True, delimiters=("=",))  # as doit reads it
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read(file, encoding="utf-8")
        sections = {"command": "COMMAND", "list": "list"}
        return {ours: dict(parser.items(s)) if parser.has_section(s) else {} for ours, s in sections.items()}
    except (ConfigError, ValueError):
        return {"command": {}, "list": {}}


# -- git -----------------------------------------------------------------------------------------------------


def _wire_git(folder: Path) -> Iterator[str]:
    """Makes git ignore doit's database, which is a cache of this machine. The store ignores itself."""
    try:
        asked = subprocess.run(
            ["git", "check-ignore", "-q", DATABASE], cwd=folder, capture_output=True, check=False
        )
    except OSError:  # git is not installed
        return
    if asked.returncode != 1:  # ignored, or not a repository
        return
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text(f"{DATABASE}*\n", encoding="utf-8")
        yield f".gitignore: {DATABASE}*, a cache of doit"
    else:
        yield f".gitignore is yours and stays as it is. Add {DATABASE}*, a cache of doit."


def _indented(text: str) -> Iterator[str]:
    yield ""
    yield from (f"    {line}" for line in text.splitlines())
    yield ""
