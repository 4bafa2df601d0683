"""Completion: the words that may come next. Imports neither doit nor the store: it runs at every Tab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from builder.commands import COMMANDS, STANDALONE

_DOIT = ("list", "info", "forget", "ignore", "help", "dumpdb", "reset-dep", "clean")
_JSON = ("status", "why", "plan", "report", "gc", "verify")


def complete(words: Sequence[str]) -> int:
    """Prints the candidates for the last of `words`; the first is the program, `doit` or `builder`."""
    program, *rest = words or ["builder"]
    for word in candidates(program, rest or [""], _read(Path("artifacts.toml"))):
        print(word)
    return 0


def candidates(program: str, words: Sequence[str], declared: dict[str, object]) -> list[str]:
    """What may stand in place of the last word, sorted."""
    *before, last = words
    command = before[0] if before else ""
    if not before:
        found = {*_commands(program), *(_tasks(declared) if program == "doit" else ())}
    elif last.startswith("-"):
        found = {"--json"} if command in _JSON else {"--progress", "--quiet", "--continue"}
    elif command in ("build", "status", "why", "plan", "attest"):
        found = {*_targets(declared), *_models(declared)}
        if command == "build":
            found |= set(_tasks(declared))
    elif command == "report":
        found = set(_models(declared))
    elif command == "add-variant":
        found = set(_models(declared) if len(before) == 1 else _names(declared, "variant"))
    elif command == "completion":
        found = {"bash", "zsh", "fish"}
    elif command == "init":
        found = set()
    else:
        found = set(_tasks(declared))
    return sorted(word for word in found if word.startswith(last))


def _commands(program: str) -> Iterator[str]:
    yield from (name for name in COMMANDS if name != "run")
    yield from _DOIT
    if program != "doit":
        yield from ("build", *STANDALONE)


def _tasks(declared: dict[str, object]) -> Iterator[str]:
    """The tasks that builder.tasks makes."""
    for name in _names(declared, "base"):
        yield f"base:{name}"
    for name in _names(declared, "adapter"):
        yield f"adapter:{name}"
    for name in [*_targets(declared), *_models(declared)]:
        yield f"model:{name}"
    for name in [*_targets(declared), *_names(declared, "variant")]:
        yield f"clean:{name}"
    for model in _measured(declared, "suites"):
        yield from (f"eval:{name}" for name in _targets(declared) if name.startswith(f"{model}_"))
    for model in _measured(declared, "require"):
        yield f"threshold:{model}"
    if _names(declared, "release"):
        yield from ("release:production", "rollback:production", "clean:production")


def _measured(declared: dict[str, object], key: str) -> Iterator[str]:
    """The models that have suites, or requirements."""
    models = declared.get("model")
    for name, table in models.items() if isinstance(models, dict) else ():
        if isinstance(table, dict) and table.get(key):
            yield name


def _targets(declared: dict[str, object]) -> Iterator[str]:
    models = declared.get("model")
    for name, table in models.items() if isinstance(models, dict) else ():
        variants = table.get("variants") if isinstance(table, dict) else None
        for variant in variants if isinstance(variants, list) else ():
            yield f"{name}_{variant}"


def _models(declared: dict[str, object]) -> list[str]:
    return _names(declared, "model")


def _names(declared: dict[str, object], kind: str) -> list[str]:
    tables = declared.get(kind)
    return list(tables) if isinstance(tables, dict) else []


def _read(file: Path) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
