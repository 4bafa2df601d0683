"""Targets by the names that a person types."""

from __future__ import annotations

from collections.abc import Iterable

from builder.console.words import listed, suggestion
from builder.errors import BuildError
from builder.project.project import Project
from builder.spec.seeds import of_all_seeds
from builder.spec.types import Target


class UnknownTarget(BuildError):
    """there is no target "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows what artifacts.toml declares."


class SeveralTargets(BuildError):
    """{name} stands for several targets, and this needs one: {possible}."""

    exit_code = 3


def find_target(project: Project, name: str) -> str:
    """One target by its name as typed. Raises UnknownTarget, SeveralTargets."""
    found = find_targets(project, [name])
    if len(found) != 1:
        of_model = [t.name for t in project.spec.targets if t.model.name == name.removeprefix("model:")]
        raise SeveralTargets(name=name, possible=listed(of_model or found, "or"))
    return found[0]


def find_targets(project: Project, names: Iterable[str]) -> tuple[str, ...]:
    """Names as typed (`phase8_5bit`, `model:phase8_5bit`, a model: all its targets) -> names of targets.

    Where `seeds` made several models of one, its name and the names of its targets stand for all seeds.
    Raises UnknownTarget.
    """
    declared = {target.name: target for target in project.spec.targets}
    seeded = of_all_seeds(project.spec)
    found: dict[str, None] = {}
    for typed in names:
        name = typed.removeprefix("model:")
        if name in declared:
            found[name] = None
        elif name in project.spec.models:
            found |= dict.fromkeys(_shown(declared.values(), name))
        elif name in seeded:
            found |= dict.fromkeys(seeded[name])
        else:
            near = suggestion(name, [*declared, *project.spec.models, *seeded]) if declared else "."
            raise UnknownTarget(name=name, near=near, possible=listed([*declared]))
    return tuple(found)


def _shown(targets: Iterable[Target], model: str) -> list[str]:
    return [each.name for each in targets if each.model.name == model and not each.variant.intermediate]
