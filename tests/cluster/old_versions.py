"""Loaded into a worker of tests: it says that it has an old mlx-lm."""

from __future__ import annotations

import importlib.metadata

_version = getattr(importlib.metadata, "former", importlib.metadata.version)  # dask may load a preload twice
importlib.metadata.former = _version  # type: ignore[attr-defined]


def version(name: str) -> str:
    return "0.1" if name == "mlx-lm" else _version(name)


version.__module__, version.__qualname__ = "importlib.metadata", "version"
importlib.metadata.version = version
