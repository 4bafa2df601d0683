"""Loads the tokenizer of a directory, with all tokens that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def tokenizer_of(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that mlx_lm.load makes, with the end tokens in config.json and generation_config.json."""
    from mlx_lm.utils import load_config, load_tokenizer

    return load_tokenizer(
        directory,
        {"trust_remote_code": trust_remote_code},
        eos_token_ids=load_config(directory).get("eos_token_id"),
    )


def tokenizer_of_files(files: Mapping[str, str], *, trust_remote_code: bool = False) -> Any:
    """As `tokenizer_of`, of files that lie in several folders: name -> path."""
    with TemporaryDirectory() as folder:
        for name, path in files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).symlink_to(path)
        return tokenizer_of(Path(folder), trust_remote_code=trust_remote_code)
