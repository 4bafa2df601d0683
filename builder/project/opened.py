"""The folders that another program loads: of a target as it is built now, and of a base."""

from __future__ import annotations

from pathlib import Path

from builder.errors import BuildError
from builder.project.project import Project
from builder.project.watch import show_import
from builder.spec.types import Base, GgufSource
from builder.store import records


class NotBuilt(BuildError):
    """{target} is not built."""

    hint = "`builder build {target}` builds it, `builder why {target}` says why it is not."


def target_folder(project: Project, name: str) -> Path:
    """The view of a target that is built at its current key; this counts as a use. Raises NotBuilt."""
    key = project.keys.get(name)
    if key is None or not project.is_built(name):
        raise NotBuilt(target=name)
    records.mark_used(project.store, key)
    return project.store.models / name


def base_folder(project: Project, base: Base) -> Path:
    """The folder of a base in Hugging Face layout. Raises NotBuilt for a GGUF that is not imported,
    SourceError.
    """
    if isinstance(base.source, GgufSource):
        manifest = project.sources.imported(base)
        if manifest is None:
            raise NotBuilt(
                target=f"base:{base.name}", hint=f"`builder build base:{base.name}` imports its GGUF."
            )
        return show_import(project.store, manifest)
    return project.sources.base_directory(base)
