"""The text that a variant is made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from builder.errors import SourceMissing
from builder.keys import Digest
from builder.sources.facts import NOT_YET, Calibration, Unknown
from builder.spec.types import Variant


def calibration_of(variant: Variant, digest_of: Callable[[Path], Digest | None]) -> Calibration | Unknown:
    """The digest of a variant's text, if it is known, and how the text is read."""
    path = variant.calibration
    assert path is not None
    if not path.is_file():
        missing = SourceMissing(table=f"variant.{variant.name}", path=path)
        return Unknown(f"variant {variant.name}: its calibration file {path} does not exist", missing)
    digest = digest_of(path)
    if digest is None:
        return Unknown(f"variant {variant.name}: its calibration file {NOT_YET}")
    return Calibration(digest, read_as(path))


def read_as(path: Path) -> str:
    """How a text is read, by its name: `jsonl` or `text`."""
    return "jsonl" if path.suffix == ".jsonl" else "text"
