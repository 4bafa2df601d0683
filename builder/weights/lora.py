"""The names of the parts of a low-rank adapter, as in mlx-lm (mlx_lm.tuner.lora, mlx_lm.tuner.dora)."""

from __future__ import annotations

PAIR = ("lora_a", "lora_b")
MAGNITUDE = "m"  # only DoRA has it
PARTS = (*PAIR, MAGNITUDE)
