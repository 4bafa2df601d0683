"""A declarative build system for model artifacts. See docs/design.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.api import Project

__version__ = "0.1.0"
__all__ = ["Project", "__version__"]


def __getattr__(name: str) -> Any:
    """`from builder import Project` loads what it needs; importing a module of the package does not."""
    if name == "Project":
        from builder.api import Project

        return Project
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
