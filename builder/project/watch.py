"""Whether a pass reads what its plan was made from: mlx reads weights when they are needed, minutes later.

`mlx_lm.lora` rewrites its adapter each time it saves, and a download or a copy may still be going on. So the
files of the sources are looked at before anything is read, compared with the plan by what the stat cache
knows of them, and looked at again before anything is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from builder.errors import SourceChanged
from builder.plan.types import GENERATION, TargetPlan
from builder.project.project import Project
from builder.sources import base as bases
from builder.sources.adapters.reading import adapter_files
from builder.sources.facts import BaseIdentity, Unknown
from builder.sources.own_tokenizer import own_tokenizer
from builder.spec.types import Adapter, Base
from builder.store import records, views
from builder.store.disk.identity import Identity, identity_of
from builder.store.holdings import whole_manifest
from builder.store.layout import Store
from builder.store.types import Manifest


@contextmanager
def unchanged(project: Project, target: TargetPlan) -> Iterator[Callable[[], None]]:
    """A check that the files of a target's base and adapter are those of its plan; raises SourceChanged.

    Whatever fails meanwhile is SourceChanged too, if a file changed: one that is half written looks damaged.
    """
    base = project.spec.bases[target.target.model.base]
    name = target.target.model.adapter
    adapter = project.adapter(name) if name else None
    before = {path: (source, _content(path)) for source, path in _files(project, target, base, adapter)}
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


def base_folder(project: Project, target: TargetPlan) -> Path:
    """The folder of the base that a target was planned from; an import is found by its key, never by a name.

    Raises SourceError, SourceChanged when what was planned from is gone, StoreError.
    """
    base = project.spec.bases[target.target.model.base]
    imported = target.base.identity.imported
    if imported is None:
        return project.sources.base_directory(base)
    manifest = whole_manifest(project.store, imported)
    if manifest is None:
        raise SourceChanged(source=f"base:{base.name}", path=records.manifest_path(project.store, imported))
    return show_import(project.store, manifest)


def show_import(store: Store, manifest: Manifest) -> Path:
    """The view of an import, made if it is not there: its folder is named by its key. Raises StoreError."""
    return _show(store, store.bases / manifest.key, manifest)


def show_trained(store: Store, manifest: Manifest) -> Path:
    """The view of a trained adapter, made if it is not there, as that of an import. Raises StoreError."""
    return _show(store, store.adapters / manifest.key, manifest)


def _show(store: Store, folder: Path, manifest: Manifest) -> Path:
    if not views.is_current(store, folder, manifest):
        views.materialize(store, folder, manifest)
    return folder


def require_base(project: Project, base: Base, target: TargetPlan) -> None:
    """Raises SourceChanged unless a base's files are those of the plan. An import is in the store, sealed."""
    if target.base.identity.imported is not None:
        return
    directory = project.sources.base_directory(base)
    files = bases.list_files(base, directory)
    _digest(project, (*files.weights, *files.copied))
    if _identity(project, base, target) != target.base.identity:
        raise SourceChanged(source=f"base:{base.name}", path=directory)


def _identity(project: Project, base: Base, target: TargetPlan) -> BaseIdentity | Unknown:
    """The identity of a base as it is now, with the adapter's tokenizer if the target gets that."""
    now = project.sources.base_identity(base)
    name = target.target.model.adapter
    if name is None or isinstance(now, Unknown):
        return now
    own = own_tokenizer(project.sources, project.spec.adapters[name])
    return own.on(now) if own else now


def require_adapter(project: Project, adapter: Adapter, planned: str | None) -> None:
    """Raises SourceChanged unless an adapter's files are those of the plan."""
    files = adapter_files(adapter)
    _digest(project, files)
    if project.sources.adapter_key(adapter) != planned:
        raise SourceChanged(source=f"adapter:{adapter.name}", path=files[1])


def _files(
    project: Project, target: TargetPlan, base: Base, adapter: Adapter | None
) -> Iterator[tuple[str, Path]]:
    directory = base_folder(project, target)
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


def copied_from(project: Project, target: TargetPlan) -> Mapping[str, Path]:
    """Where the files lie that a target copies: in the folder of its base, or of its adapter.

    Raises what `base_folder` raises.
    """
    folder, own = base_folder(project, target), target.adapter.tokenizer if target.adapter else None
    places = {entry.name: folder / entry.name for entry in target.base.aux}
    if own is not None and own.used:
        brought = project.adapter(str(target.target.model.adapter)).path
        places |= {entry.name: brought / entry.name for entry in own.files}
    return places


class Shown:
    """A view that is read for a while: the same folder, unedited, from the first look to the last.

    A folder that shows the same key again is another one if it was replaced in between: it may have been read
    while it showed something else.
    """

    def __init__(self, store: Store, folder: Path, manifest: Manifest) -> None:
        self._store, self.folder, self._manifest = store, folder, manifest
        self._first = self._look()

    @property
    def is_shown(self) -> bool:
        """Whether the folder shows the manifest now, and has done so all the time since."""
        return self._first is not None and self._look() == self._first

    def _look(self) -> tuple[int, Identity] | None:
        found = views.instance(self.folder)
        return found if views.is_current(self._store, self.folder, self._manifest) else None
