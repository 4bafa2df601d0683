"""A remote as it is declared: a store that several machines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PUSHES = ("never", "release", "always")
DEVICES = ("any", "same")


@dataclass(frozen=True)
class Remote:
    """A store that a team shares. `folder` is where it lies, None for a bucket or a web server.

    `push` says after what a run pushes. `endpoint`, `region` and `profile` are of S3. `trust`: the public
    keys whose signatures count, by name. Without any, nothing need be signed.
    """

    name: str
    url: str
    folder: Path | None = None
    push: str = "never"
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    trust: Mapping[str, str] = field(default_factory=dict)
