"""What a low-rank adapter consists of, under mlx-lm's names (mlx_lm.tuner.lora, mlx_lm.tuner.dora)."""

from __future__ import annotations

PAIR = ("lora_a", "lora_b")
MAGNITUDE = "m"  # DoRA's
PARTS = (*PAIR, MAGNITUDE)
