"""Embeddings outside of the layers, without their whole table in float32.

A table of 150,000 rows is larger than a layer, and a text needs some hundred of its rows. So rows become
float32 when they are looked up, from the stored or the rounded table. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from builder.spec.types import Quantization


class Lookup(nn.Embedding):  # type: ignore[misc]
    """An embedding that gives float32. `how`: how its table is rounded, if it is."""

    how: Quantization | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self.how is None:
            rows: mx.array = self.weight[x].astype(mx.float32)
            return rows
        biases = self.biases[x] if "biases" in self else None
        return unrounded(self.weight[x], self.scales[x], biases, self.how)

    def as_linear(self, x: mx.array) -> mx.array:
        return x @ self.table().T

    def table(self) -> mx.array:
        """All rows in float32, lazy."""
        if self.how is None:
            rows: mx.array = self.weight.astype(mx.float32)
            return rows
        return unrounded(self.weight, self.scales, self.biases if "biases" in self else None, self.how)

    def take(self, tensors: Mapping[str, mx.array], path: str, how: Quantization | None) -> None:
        """Looks up in these tensors from now on, which have full names, if its own are among them."""
        if f"{path}.weight" in tensors:
            self.how = how
            for leaf in ("weight", "scales", "biases"):
                if f"{path}.{leaf}" in tensors:
                    self[leaf] = tensors[f"{path}.{leaf}"]


def unrounded(weight: mx.array, scales: mx.array, biases: mx.array | None, how: Quantization) -> mx.array:
    """What a rounded weight, or rows of it, stands for, in float32."""
    if how.mode == "affine":
        assert biases is not None
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    made: mx.array = mx.dequantize(
        weight, scales, biases, group_size=how.group_size, bits=how.bits, mode=how.mode
    )
    return made.astype(mx.float32)


@contextmanager
def lookups(model: nn.Module, layers: Collection[str]) -> Iterator[Mapping[str, Lookup]]:
    """Each plain embedding outside of the layers is a `Lookup` until the block ends. Gives them by path."""
    found: dict[str, Any] = {
        p: module for p, module in outside(model, layers) if type(module) is nn.Embedding
    }
    try:
        for module in found.values():
            module.__class__ = Lookup
        yield found
    finally:
        for module in found.values():
            module.__class__ = nn.Embedding


def outside(model: nn.Module, layers: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model that are not in one of its layers."""
    for path, module in model.named_modules():
        if path and not any(path == layer or path.startswith(f"{layer}.") for layer in layers):
            yield path, module


def to_float32(model: nn.Module, tables: Mapping[str, Lookup]) -> None:
    """Gives the parameters of a model that is not rounded in float32, lazy, but for the tables."""
    stored = {path: table.weight for path, table in tables.items()}
    model.set_dtype(mx.float32)
    for path, weight in stored.items():
        tables[path].weight = weight
