"""The types of an adapter that was read, under mlx-lm's names, and the error that refuses an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from builder.errors import SourceInvalid
from builder.spec.types import Adapter
from builder.weights.safetensors import SafetensorsFile

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor under its mlx-lm name. `shape` is its shape there, and `dtype` is a safetensors code.

    `source_names` is the stored tensor, or the tensors of all experts, to be stacked in this order.
    `transpose` says that the stored tensor must be transposed.
    """

    name: str
    path: str
    part: str
    source_names: tuple[str, ...]
    transpose: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def source_name(self) -> str:
        """The name of the first stored tensor, for messages."""
        return self.source_names[0]


@dataclass(frozen=True)
class AdapterInfo:
    """A whole adapter. `scales` maps each LoRA path to its scale, and is empty for a full fine-tune."""

    name: str
    layout: Literal["mlx-lm", "peft"]
    fine_tune_type: str
    file: SafetensorsFile
    tensors: tuple[AdapterTensor, ...]
    scales: Mapping[str, float]


def table_of(adapter: Adapter) -> str:
    """The table that declares an adapter, as errors name it."""
    return f"adapter.{adapter.name}"


def refuse(adapter: Adapter, path: Path, what: str) -> NoReturn:
    """Raises SourceInvalid: `what` is wrong with the file at `path`."""
    raise SourceInvalid(table=table_of(adapter), path=path, what=what)
