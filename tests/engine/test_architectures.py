"""Every text architecture of mlx-lm: our stream gives what its fuse and convert give, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.architecture_table import TABLE, row
from tests.architectures import REGISTRY, Architecture, unregistered
from tests.comparison import compare

# Compared every time; the rest with `-m slow`. Each stands for a trait of the engine's input.
EVERY_TIME = {
    "llama", "llama-tied", "llama-biased", "llama-original", "qwen2", "qwen3", "gemma2", "gemma3-original",
    "gemma3n", "gpt2-original", "cohere", "afm7", "olmo", "baichuan_m1", "bitnet",
    "mixtral-original", "qwen3_moe", "qwen3_moe-original", "deepseek_v2", "deepseek_v3-original",
    "deepseek_v41", "gpt_oss", "granitemoe-original", "bailing_moe-normed", "longcat_flash_ngram", "llama4",
    "qwen3_next-original", "prism_hadamard_qwen35", "falcon_h1", "nemotron_h-original", "lfm2", "jamba",
    "recurrent_gemma", "mamba", "mamba2", "rwkv7",
}  # fmt: skip


def listed() -> list[Any]:
    return [
        pytest.param(a, id=a.name, marks=[] if a.name in EVERY_TIME else [pytest.mark.slow]) for a in REGISTRY
    ]


@pytest.mark.parametrize("architecture", listed())
def test_fused_and_converted(architecture: Architecture, tmp_path: Path) -> None:
    result = compare(architecture, tmp_path)
    assert not result.differences
    assert result.changed_again == architecture.changed_again
    failures = [failure for failure in result.failures if not failure.startswith("mixed:")]
    assert bool(failures) == bool(architecture.fails), failures
    assert all(architecture.fails in failure for failure in failures)
    assert row(result) in TABLE.read_text().splitlines(), "run `python -m tests.architecture_table`"


def test_no_model_of_mlx_lm_is_forgotten() -> None:
    assert unregistered() == []
    assert {architecture.name for architecture in REGISTRY} >= EVERY_TIME
