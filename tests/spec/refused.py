"""What is wrong with a declaration, as a person is told."""

from __future__ import annotations

from pathlib import Path

from builder.errors import SpecError
from builder.spec.parse import parse_spec


def problems(declaration: str) -> str:
    """Empty for a declaration that is right."""
    try:
        parse_spec(Path("artifacts.toml"), declaration.encode())
    except SpecError as error:
        return str(error)
    return ""
