"""An adapter as frozen values, under mlx-lm's names, and how it is refused."""

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
    """One tensor under its mlx-lm name; `shape` and `transpose` say how it is used, not how it is stored.

    `source_names`: the stored tensor, or those of all experts, which are stacked in this order.
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
        """The first, for messages."""
        return self.source_names[0]


@dataclass(frozen=True)
class AdapterInfo:
    """A whole adapter. `scales`: the factor of each LoRA path (empty for a full fine-tune)."""

    name: str
    layout: Literal["mlx-lm", "peft"]
    fine_tune_type: str
    file: SafetensorsFile
    tensors: tuple[AdapterTensor, ...]
    scales: Mapping[str, float]


def table_of(adapter: Adapter) -> str:
    return f"adapter.{adapter.name}"


def refuse(adapter: Adapter, path: Path, what: str) -> NoReturn:
    raise SourceInvalid(table=table_of(adapter), path=path, what=what)
