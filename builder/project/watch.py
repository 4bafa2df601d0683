"""Whether a pass reads what its plan was made from: mlx reads weights when they are needed, minutes later.

`mlx_lm.lora` rewrites its adapter each time it saves, and a download or a copy may still be going on. So the
files of the sources are looked at before anything is read, compared with the plan by what the stat cache
knows of them, and looked at again before anything is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from builder.errors import BuildError
from builder.plan.types import GENERATION, TargetPlan
from builder.project.project import Project
from builder.sources import base as bases
from builder.sources.adapters.reading import adapter_files
from builder.spec.types import Adapter, Base, GgufSource
from builder.store.disk.identity import identity_of


class SourceChanged(BuildError):
    """{source}: {path} changed while it was being read."""

    exit_code = 2
    hint = "No wrong result was kept. Run the same command again."


@contextmanager
def unchanged(project: Project, target: TargetPlan) -> Iterator[Callable[[], None]]:
    """A check that the files of a target's base and adapter are those of its plan; raises SourceChanged.

    Whatever fails meanwhile is SourceChanged too, if a file changed: one that is half written looks damaged.
    """
    base = project.spec.bases[target.target.model.base]
    name = target.target.model.adapter
    adapter = project.spec.adapters[name] if name else None
    before = {path: (source, _content(path)) for source, path in _files(project, base, adapter)}
    require_base(project, base, target)
    if adapter is not None:
        require_adapter(project, adapter, target.adapter.digest if target.adapter else None)

    def check() -> None:
        for path, (source, content) in before.items():
            if _content(path) != content:
                raise SourceChanged(source=source, path=path)

    try:
        yield check
    except Exception:
        check()
        raise
    check()


def require_base(project: Project, base: Base, target: TargetPlan) -> None:
    """Raises SourceChanged unless a base's files are those of the plan. An import is in the store, sealed."""
    if isinstance(base.source, GgufSource):
        return
    directory = project.sources.base_directory(base)
    files = bases.list_files(base, directory)
    _digest(project, (*files.weights, *files.copied))
    if project.sources.base_files(base) != (target.base.weights, target.base.aux):
        raise SourceChanged(source=f"base:{base.name}", path=directory)


def require_adapter(project: Project, adapter: Adapter, planned: str | None) -> None:
    """Raises SourceChanged unless an adapter's files are those of the plan."""
    files = adapter_files(adapter)
    _digest(project, files)
    if project.sources.adapter_key(adapter) != planned:
        raise SourceChanged(source=f"adapter:{adapter.name}", path=files[1])


def _files(project: Project, base: Base, adapter: Adapter | None) -> Iterator[tuple[str, Path]]:
    directory = project.sources.base_directory(base)
    for path in (*bases.list_files(base, directory).weights, directory / GENERATION):
        yield f"base:{base.name}", path
    if adapter is not None:
        for path in adapter_files(adapter):
            yield f"adapter:{adapter.name}", path


def _digest(project: Project, paths: Sequence[Path]) -> None:
    """What is known costs a stat; what another process hashed as soon as it was written is read again."""
    for path in paths:
        if project.sources.known_digest(path) is None:
            project.sources.digest(path)


def _content(path: Path) -> tuple[int, ...] | None:
    found = identity_of(path)
    return found.content if found else None
