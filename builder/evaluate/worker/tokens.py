"""Loads the tokenizer of a directory, with all tokens that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tokenizer_of(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that mlx_lm.load makes, with the end tokens in config.json and generation_config.json."""
    from mlx_lm.utils import load_config, load_tokenizer

    return load_tokenizer(
        directory,
        {"trust_remote_code": trust_remote_code},
        eos_token_ids=load_config(directory).get("eos_token_id"),
    )
