"""What makes the bytes and the figures: the versions that are installed, and the machine."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache


@cache
def toolchain() -> str:
    """The versions that make the bytes, for `[build] strict_toolchain`."""
    return " ".join(f"{name} {version_of(name)}" for name in ("mlx", "mlx-lm"))


def version_of(package: str) -> str:
    """Its installed version; "-" when it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def machine() -> str:
    """The operating system and the kind of processor: "Darwin arm64"."""
    import platform

    return f"{platform.system()} {platform.machine()}"


def device() -> str:
    """The kind of device that computes here: metal, cuda or cpu. Kinds may round differently."""
    import sys

    if sys.platform == "darwin":
        return "metal"
    return "cuda" if any(version_of(f"mlx-cuda-{number}") != "-" for number in (12, 13)) else "cpu"


def machine_name() -> str:
    """This machine, for figures that mean nothing on another one: its name and its kind."""
    import platform

    return f"{platform.node()} {machine()}"


def now() -> str:
    """RFC 3339, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def made_by() -> dict[str, str]:
    """Recorded, not keyed: when, with which versions and on which machine something was made."""
    return {"made": now(), "toolchain": toolchain(), "machine": machine(), "device": device()}
