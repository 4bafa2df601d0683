"""The parts of a low-rank adapter, as in mlx-lm (mlx_lm.tuner.lora, mlx_lm.tuner.dora)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAIR = ("lora_a", "lora_b")
MAGNITUDE = "m"  # only DoRA has it
PARTS = (*PAIR, MAGNITUDE)


@dataclass(frozen=True)
class Merge:
    """What an adapter does to one tensor of the checkpoint, before mlx-lm makes parameters of it.

    whole: the tensor that replaces it. parts: lora_a, lora_b (and m) in the orientation of mlx-lm, (in, r)
    and (r, out), or (tokens, r) and (r, dims) for an embedding. flip: the checkpoint stores the weight as
    (in, out). reaches: the parameters that mlx-lm makes from the tensor. Arrays are of mlx, lazy.
    """

    path: str
    whole: Any | None
    parts: Mapping[str, Any]
    scale: float
    embedding: bool
    flip: bool
    reaches: tuple[str, ...]
