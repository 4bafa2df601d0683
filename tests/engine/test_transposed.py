"""Weights that a `sanitize` has transposed, as those of GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from builder.engine.block import Block
from builder.spec.types import Quantization, Variant
from tests.architectures import REGISTRY, checkpoint
from tests.comparison import stream


def test_what_is_quantized_has_its_rows_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mx.quantize on CUDA reads a transposed matrix as if it was not transposed."""
    base = checkpoint(tmp_path / "base", next(each for each in REGISTRY if each.name == "gpt2-original"))
    quantized, to_quantized, seen = Block.quantized, nn.Linear.to_quantized, []

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(np.array(self.weight.view(mx.uint16), copy=False).flags.c_contiguous)
        return to_quantized(self, *args, **kwargs)

    def spied(self: Block, *args: Any) -> dict[str, mx.array]:
        with mock.patch.object(nn.Linear, "to_quantized", spy):
            return quantized(self, *args)

    monkeypatch.setattr(Block, "quantized", spied)
    stream(base, None, [Variant("4bit", quantization=Quantization(4, 32))], compiled=False)
    assert seen
    assert all(seen)
