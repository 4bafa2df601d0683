"""A declarative build system for model artifacts. See docs/design.md."""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes milliseconds in which Ctrl-C would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from builder.api import Project
    from builder.console.events import silent
    from builder.errors import BuildError
    from builder.project.opened import NotBuilt

__version__ = "0.1.0"
__all__ = ["BuildError", "NotBuilt", "Project", "__version__", "silent"]

_PLACES = {  # name -> module
    "Project": "builder.api",
    "BuildError": "builder.errors",
    "NotBuilt": "builder.project.opened",
    "silent": "builder.console.events",
}


def __getattr__(name: str) -> Any:
    """`from builder import Project` loads what it needs; importing a module of the package does not."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
