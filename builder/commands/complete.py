"""Completes command lines: finds the words that may come next.

This module imports neither doit nor the store, because it runs at every press of Tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from builder.commands import COMMANDS, STANDALONE
from builder.spec.place import DECLARATION, project_folder

_DOIT = ("list", "info", "forget", "ignore", "help", "dumpdb", "reset-dep", "clean")
_RUN = (
    "--always-execute",
    "--continue",
    "--verbosity",
    "--reporter",
    "--output-file",
    "--process",
    "--parallel-type",
    "--pdb",
    "--single",
    "--auto-delayed-regex",
    "--failure-verbosity",
    "--progress",
    "--quiet",
    "--locked",
    "--no-remote",
    "--cluster",
    "--no-space-check",
    "--dry-run",
    "--json",
)
# The classes of the commands declare these options too, but importing them takes too long. A test compares.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "run": _RUN,
    "build": _RUN,
    "eval": (*_RUN, "--again"),
    "status": ("--json",),
    "why": ("--json",),
    "plan": ("--json",),
    "gc": (
        "--dry-run",
        "--keep-days",
        "--max-size",
        "--grace",
        "--forget",
        "--delete-everything-undeclared",
        "--results",
        "--yes",
        "--json",
    ),
    "verify": ("--repair", "--sample", "--seed", "--json"),
    "report": ("--out", "--json"),
    "init": ("--schema", "--store"),
    "add-variant": ("--bits", "--group-size", "--mode", "--dtype", "--recipe"),
    "attest": ("--sha256",),
    "path": (),
    "lock": ("--check", "--json"),
    "push": ("--remote", "--dry-run", "--read-back", "--json"),
    "pull": ("--remote", "--dry-run", "--json"),
    "remote": ("--dry-run", "--grace", "--keep-days", "--yes", "--json"),
    "trust": ("--new", "--keychain", "--remote", "--json"),
    "worker": ("--name",),
    "completion": (),
    "help": (),
    "list": ("--all", "--quiet", "--status", "--private", "--deps", "--template", "--sort", "--json"),
    "info": ("--no-status",),
    "forget": ("--follow-sub", "--disable-default", "--all"),
    "clean": ("--clean-dep", "--clean-all", "--dry-run", "--forget"),
}
VALUES: Mapping[str, tuple[str, ...]] = {  # option -> the values that it takes
    "--progress": ("live", "plain", "json", "silent"),
    "--mode": ("affine", "mxfp4", "nvfp4", "mxfp8"),
    "--parallel-type": ("process", "thread"),
}
_NAMES_NOTHING = ("init", "lock", "gc", "trust", "worker", "dumpdb")


def complete(words: Sequence[str]) -> int:
    """Prints the candidates for the last of `words`. The first is the program, `doit` or `builder`.

    Returns the exit code, which is always 0.
    """
    program, *rest = words or ["builder"]
    folder = Path() if program == "doit" else project_folder(Path.cwd()) or Path()
    for word in candidates(program, rest or [""], declared(folder), own_tasks()):
        print(word)
    return 0


def candidates(
    program: str, words: Sequence[str], declared: Mapping[str, object], own: Sequence[str] = ()
) -> list[str]:
    """The words that may replace the last word, sorted. `own` are the tasks that dodo.py itself defines."""
    *before, last = words
    commands = {*_commands(program, declared)}
    command = before[0] if before and before[0] in commands else "run"
    tasks = {*_tasks(declared), *(own if program == "doit" else ())}
    if before and before[-1] in VALUES:
        found: set[str] = set(VALUES[before[-1]])
    elif before and before[-1] == "--remote":
        found = set(_names(declared, "remote"))
    elif last.startswith("-"):
        found = set(OPTIONS.get(command, ())) if before or program == "doit" else set()
        found |= {"--help"} if before else set()
    elif not before:
        found = commands | (tasks if program == "doit" or last else set())
        found |= {*_targets(declared), *_models(declared)} if program == "builder" and last else set()
    elif command in ("build", "eval"):
        found = {*_targets(declared), *_models(declared), *tasks}
    elif command in ("status", "why", "plan", "attest", "verify", "path", "push", "pull"):
        found = {*_targets(declared), *_models(declared)}
    elif command == "report":
        found = set(_models(declared))
    elif command == "add-variant":
        found = set(_models(declared) if len(before) == 1 else _names(declared, "variant"))
    elif command == "remote":
        found = {"init", "check", "gc"} if len(before) == 1 else set(_names(declared, "remote"))
    elif command == "completion":
        found = {"bash", "zsh", "fish"}
    elif command == "help":
        found = commands
    elif command in _NAMES_NOTHING:
        found = set()
    else:
        found = tasks
    return sorted(word for word in found if word.startswith(last))


def declared(folder: Path = Path()) -> dict[str, object]:
    """The content of artifacts.toml in a folder, unchecked. Empty when the file cannot be read."""
    return _read(folder / DECLARATION)


def own_tasks() -> list[str]:
    """The tasks that functions in dodo.py define. dodo.py is not run, so other tasks are missing."""
    try:
        text = Path("dodo.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return re.findall(r"^def task_(\w+)", text, re.MULTILINE)


def buildable(declared: Mapping[str, object]) -> list[str]:
    """All names that `builder build` takes: tasks, groups of tasks, targets and models."""
    tasks = [*_tasks(declared)]
    groups = {task.partition(":")[0]: None for task in tasks}
    return [*_targets(declared), *_models(declared), *tasks, *groups]


def _commands(program: str, declared: Mapping[str, object]) -> Iterator[str]:
    yield from _DOIT
    if program != "doit" or declared:  # outside of a project, doit does not know these commands
        yield from (name for name in COMMANDS if name != "run")
    if program != "doit":
        yield from STANDALONE


def _tasks(declared: Mapping[str, object]) -> Iterator[str]:
    """The names of the tasks that `builder.tasks.graph` makes."""
    for name in _names(declared, "base"):
        yield f"base:{name}"
    for name in _names(declared, "adapter"):
        yield f"adapter:{name}"
    for name in _having(declared, "variant", "method"):
        yield f"calibration:{name}"
    for name in [*_targets(declared), *_models(declared)]:
        yield f"model:{name}"
    for name in [*_targets(declared), *_used_variants(declared)]:
        yield f"clean:{name}"
    for model in _having(declared, "model", "suites"):
        yield from (f"eval:{name}" for name in _targets(declared) if name.startswith(f"{model}_"))
    for model in _having(declared, "model", "require"):
        yield f"threshold:{model}"
    if _names(declared, "release"):
        yield from ("release:production", "rollback:production", "clean:production")
    for name in _names(declared, "publish"):
        yield f"publish:{name}"


def _having(declared: Mapping[str, object], kind: str, key: str) -> Iterator[str]:
    """The names of the tables of a kind that have a key, for example the models that have suites."""
    tables = declared.get(kind)
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if isinstance(table, dict) and table.get(key):
            yield name


def _targets(declared: Mapping[str, object]) -> Iterator[str]:
    yield from (f"{model}_{variant}" for model, variant in _pairs(declared))


def _used_variants(declared: Mapping[str, object]) -> set[str]:
    return {variant for _, variant in _pairs(declared)}


def _pairs(declared: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Every pair of a model and one of its variants."""
    models = declared.get("model")
    for name, table in models.items() if isinstance(models, dict) else ():
        variants = table.get("variants") if isinstance(table, dict) else None
        for variant in variants if isinstance(variants, list) else ():
            yield name, str(variant)


def _models(declared: Mapping[str, object]) -> list[str]:
    return _names(declared, "model")


def _names(declared: Mapping[str, object], kind: str) -> list[str]:
    tables = declared.get(kind)
    return list(tables) if isinstance(tables, dict) else []


def _read(file: Path) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
