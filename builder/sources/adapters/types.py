"""The types of an adapter that was read, under mlx-lm's names, and the error that refuses an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from builder.errors import SourceInvalid
from builder.spec.types import Adapter
from builder.weights import lora
from builder.weights.safetensors import SafetensorsFile

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Cut:
    """Which part of a stored tensor of PEFT becomes a tensor of mlx-lm, and in what order of dimensions.

    experts: PEFT stores the pair of all experts as (r * experts, in) and (out, r * experts). 0: an ordinary
    pair. swapped: the stored lora_B plays the role of lora_A, since PEFT took the dimensions in the other
    order. rows: first, end, step of the rows of `out` that belong here (gate and up of one projection). None:
    all.
    """

    experts: int = 0
    swapped: bool = False
    rows: tuple[int, int, int] | None = None


WHOLE = Cut()


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor under its mlx-lm name. `shape` is its shape there, and `dtype` is a safetensors code.

    `source_names` is the stored tensor, or the tensors of all experts, to be stacked in this order.
    `transpose` says that the stored tensor must be transposed. `cut` says which part of it belongs here.
    `through`: the tensor of the checkpoint that this tensor changes before mlx-lm makes the parameters
    `reaches` of it. Then `path` is the path in the checkpoint. Empty: the tensor has its own place in
    mlx-lm's model.
    """

    name: str
    path: str
    part: str
    source_names: tuple[str, ...]
    transpose: bool
    dtype: str
    shape: tuple[int, ...]
    cut: Cut = WHOLE
    embedding: bool = False
    through: str = ""
    reaches: tuple[str, ...] = ()
    flip: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the parameters of mlx-lm's model that this tensor changes or replaces."""
        leaf = "weight" if self.part in lora.PARTS else self.part
        return self.reaches if self.through else (f"{self.path}.{leaf}",)

    @property
    def source_name(self) -> str:
        """The name of the first stored tensor, for messages."""
        return self.source_names[0]


@dataclass(frozen=True)
class AdapterInfo:
    """A whole adapter. `scales` maps each LoRA path to its scale, and is empty for a full fine-tune.

    `config` is PEFT's adapter_config.json, and empty for other layouts.
    """

    name: str
    layout: Literal["mlx-lm", "peft"]
    fine_tune_type: str
    file: SafetensorsFile
    tensors: tuple[AdapterTensor, ...]
    scales: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)


def table_of(adapter: Adapter) -> str:
    """The table that declares an adapter, as errors name it."""
    return f"adapter.{adapter.name}"


def refuse(adapter: Adapter, path: Path, what: str, hint: str | None = None) -> NoReturn:
    """Raises SourceInvalid: `what` is wrong with the file at `path`."""
    raise SourceInvalid(table=table_of(adapter), path=path, what=what, hint=hint)
