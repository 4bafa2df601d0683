"""Targets by the names that a person types."""

from __future__ import annotations

from collections.abc import Iterable

from builder.console.words import listed, suggestion
from builder.errors import BuildError
from builder.project.project import Project


class UnknownTarget(BuildError):
    """there is no target "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows what artifacts.toml declares."


class SeveralTargets(BuildError):
    """{name} is a model of several targets, and this needs one: {possible}."""

    exit_code = 3


def find_target(project: Project, name: str) -> str:
    """One target by its name as typed. Raises UnknownTarget, SeveralTargets."""
    found = find_targets(project, [name])
    if len(found) != 1:
        targets = [t.name for t in project.spec.targets if t.model.name == name.removeprefix("model:")]
        raise SeveralTargets(name=name, possible=listed(targets, "or"))
    return found[0]


def find_targets(project: Project, names: Iterable[str]) -> tuple[str, ...]:
    """Names as typed (`phase8_5bit`, `model:phase8_5bit`, a model: all its targets) -> names of targets.

    Raises UnknownTarget.
    """
    declared = {target.name: target for target in project.spec.targets}
    found: dict[str, None] = {}
    for typed in names:
        name = typed.removeprefix("model:")
        if name in declared:
            found[name] = None
        elif name in project.spec.models:
            found.update(
                {
                    t.name: None
                    for t in declared.values()
                    if t.model.name == name and not t.variant.intermediate
                }
            )
        else:
            near = suggestion(name, [*declared, *project.spec.models]) if declared else "."
            raise UnknownTarget(name=name, near=near, possible=listed([*declared]))
    return tuple(found)
