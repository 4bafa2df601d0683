"""Where a GGUF file is. Asked on every run, so it imports nothing heavy."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from builder.errors import SourceError, SourceMissing

IMPORTER = "import-gguf/1"  # part of the import's key: change it when the output changes


class PackageMissing(SourceError):
    """[{table}] the Python package "{package}" is not installed."""

    hint = 'Install it, or name a file: gguf = "path/to/model.gguf".'


def resolve_gguf(package: str | None, path: Path, table: str) -> Path:
    """The file itself; a package is found without being imported.

    Raises PackageMissing, SourceMissing (with the nearest name).
    """
    if package is None:
        folder, file = path.parent, path
    else:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise PackageMissing(table=table, package=package)
        folder = Path(next(iter(spec.submodule_search_locations)))
        file = folder / path
    if not file.is_file():
        names = [entry.name for entry in folder.glob("*.gguf")] if folder.is_dir() else []
        near = difflib.get_close_matches(file.name, names, 1, 0.3)
        hint = f'Did you mean "{near[0]}"?' if near else None
        raise SourceMissing(table=table, path=file, hint=hint)
    return file
