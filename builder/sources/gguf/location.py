"""Finds a GGUF file. Every run asks for it, so this module imports nothing heavy."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from builder.errors import SourceError, SourceMissing
from builder.store.disk.names import is_hidden

IMPORTER = "import-gguf/2"  # part of the import's key: change it when the output changes


class PackageMissing(SourceError):
    """[{table}] the Python package "{package}" is not installed."""

    hint = 'Install it, or name a file: gguf = "path/to/model.gguf".'


def resolve_gguf(package: str | None, path: Path, table: str) -> Path:
    """The path of the file. A package is found without importing it.

    `table` is the declaration named in errors. Raises PackageMissing, SourceMissing (with the nearest name).
    """
    candidates = [path] if package is None else [folder / path for folder in package_folders(package)]
    if not candidates:
        raise PackageMissing(table=table, package=package)
    if found := next((file for file in candidates if file.is_file()), None):
        return found
    file = candidates[0]
    beside = file.parent.glob("*.gguf") if file.parent.is_dir() else ()
    names = [entry.name for entry in beside if not is_hidden(entry.name)]
    near = difflib.get_close_matches(file.name, names, 1, 0.3)
    hint = f'Did you mean "{near[0]}"?' if near else None
    raise SourceMissing(table=table, path=file, hint=hint)


def package_folders(package: str) -> list[Path]:
    """The folders of an installed package. Empty if the package is not installed.

    Only the first name is given to find_spec, because find_spec imports the parents of a dotted name.
    """
    first, *rest = package.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return []
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place).joinpath(*rest) for place in places or ()]
    return [folder for folder in folders if folder.is_dir()]
