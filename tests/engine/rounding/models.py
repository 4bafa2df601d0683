"""Tiny models for the tests of calibrated rounding: those of tests.architectures, loaded and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx

from builder.engine.loading import load_base
from tests.architectures import REGISTRY, Architecture, checkpoint

BY_NAME = {architecture.name: architecture for architecture in REGISTRY}

# Models whose layers follow a pattern need more layers to run than to be quantized, and some other sizes.
RUNNABLE: Mapping[str, Mapping[str, Any]] = {}


def runnable(architecture: Architecture) -> Architecture:
    """The architecture with the sizes that its forward code needs."""
    return replace(
        architecture, changes={**architecture.changes, **RUNNABLE.get(architecture.model_type, {})}
    )


@cache
def _loaded(name: str) -> Any:
    with TemporaryDirectory() as folder:
        model, _ = load_base(checkpoint(Path(folder) / "base", runnable(BY_NAME[name])))
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return model


def model(name: str) -> Any:
    """A model in float32, the same one in each call. Whoever changes it loads its own."""
    return _loaded(name)


def text(sequences: int, length: int, seed: int = 0) -> mx.array:
    return mx.random.randint(2, 100, (sequences, length), key=mx.random.key(seed))
