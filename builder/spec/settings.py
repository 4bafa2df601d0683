"""How builds are run, as it is declared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildSettings:
    """How builds run. `strict_toolchain` puts the versions of libraries into the keys.

    `survival` measures during a build how much of the adapter is left. `memory` is a limit in bytes, or None.
    `device` says whose bytes are pulled: those of "any" kind of device, or of the "same" kind as ours.
    """

    strict_toolchain: bool = False
    survival: bool = True
    memory: int | None = None
    device: str = "any"
