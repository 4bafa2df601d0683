"""The library of llama.cpp, which the package xllamacpp brings.

Its C interface moves between releases. So it is used in processes of their own, with the one version that is
tested, and each of them looks first whether the library answers as expected.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from builder.errors import BuildError

PACKAGE = "xllamacpp"
TESTED = "2026.10.11549"


class LlamaMissing(BuildError):
    """measuring and quantizing a GGUF needs llama.cpp from the package xllamacpp {tested}, and {found}."""

    exit_code = 2
    hint = 'Install the extra: pip install "modelkiln[gguf]".'


def library() -> Any:
    """The library, loaded. Raises LlamaMissing."""
    import ctypes

    return ctypes.CDLL(str(library_file()))


def library_file() -> Path:
    """Where the library is. Raises LlamaMissing."""
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        raise LlamaMissing(tested=TESTED, found="it is not installed") from None
    if found != TESTED:
        raise LlamaMissing(tested=TESTED, found=f"{found} is installed")
    spec = find_spec(PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = [file for place in places for file in sorted(place.glob("xllamacpp*.so"))]
    if not files:
        raise LlamaMissing(tested=TESTED, found="its library is not where it should be")
    return files[0]
