"""What the process is told that holds a model."""

from __future__ import annotations

import pytest

from builder.evaluate.process import wanted_environment


@pytest.mark.parametrize(
    ("kind", "exact"), [("fidelity", True), ("choice", True), ("exact", True), ("generate", False)]
)
def test_scores_are_float32_on_a_gpu_too(kind: str, exact: bool) -> None:
    """mlx would multiply float32 with 10 bits there. What is generated is generated as it is served."""
    assert (wanted_environment({"suites": [{"kind": kind}]}).get("MLX_ENABLE_TF32") == "0") == exact


def test_a_model_that_is_larger_than_memory_keeps_what_it_frees() -> None:
    assert "GLIBC_TUNABLES" in wanted_environment({"layerwise": True})
    assert "GLIBC_TUNABLES" not in wanted_environment({"layerwise": False})
