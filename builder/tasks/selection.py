"""Notes which targets a run includes, so that the first task of a model builds all of them in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from builder.tasks.uptodate import SELECTED


def note_selection(tasks: Iterable[Any], asked: Iterable[str]) -> None:
    """Notes in SELECTED which targets this run includes, and which of them were named one by one."""
    by_name = {task.name: task for task in tasks}
    SELECTED.targets.clear()
    SELECTED.named.clear()
    SELECTED.measured.clear()
    todo = [name for pattern in asked for name in _matches(pattern, by_name)]
    SELECTED.named.update(name.removeprefix("model:") for name in todo)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        if name.startswith("model:") and by_name[name].actions:
            SELECTED.targets.add(name.removeprefix("model:"))
            continue
        if name.startswith("eval:") and by_name[name].actions:
            SELECTED.measured.add(name.removeprefix("eval:"))
        # a group, or a task that needs targets, such as eval: build these in one pass too
        todo.extend(by_name[name].task_dep)


def as_task(name: str, tasks: Mapping[str, Any]) -> str:
    """The task that a typed word means: targets and models may come without `model:`."""
    return f"model:{name}" if name not in tasks and f"model:{name}" in tasks else name


def as_tasks(names: Sequence[str], tasks: Iterable[Any]) -> list[str]:
    """The tasks that typed words mean; words that mean none stay as they are."""
    by_name = {task.name: task for task in tasks}
    return [as_task(name, by_name) for name in names]


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    if "*" in pattern:
        return [name for name in names if fnmatchcase(name, pattern)]
    return [pattern]
