"""A base whose config ties the head to the embedding, while the checkpoint holds a head."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from builder.engine.inspect import TiedHeadDiffers, inspect
from tests.architectures import Architecture, checkpoint, dense

TIED = dense("qwen3", tie_word_embeddings=True)


def with_head(folder: Path, architecture: Architecture, change: float, dtype: mx.Dtype | None = None) -> Path:
    """A checkpoint with an lm_head.weight that is the embedding plus `change`."""
    base = checkpoint(folder, architecture)
    file = str(base / "model.safetensors")
    tensors = mx.load(file)
    assert isinstance(tensors, dict)
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = (tensors[name] + change).astype(dtype or tensors[name].dtype)
    mx.eval(tensors)
    mx.save_safetensors(file, {**tensors, name.replace("model.embed_tokens", "lm_head"): head})
    return base


@pytest.mark.parametrize("dtype", [None, mx.float32])
def test_an_equal_head_is_harmless(dtype: mx.Dtype | None, tmp_path: Path) -> None:
    structure = inspect(with_head(tmp_path / "base", TIED, 0.0, dtype))
    assert structure.tied == "model.embed_tokens"
    assert structure.dropped == ("lm_head",)


def test_another_head_is_refused_by_name(tmp_path: Path) -> None:
    base = with_head(tmp_path / "base", TIED, 0.5)
    with pytest.raises(TiedHeadDiffers) as caught:
        inspect(base)
    assert str(caught.value) == (
        f'{base}: config.json ties the output head to the embedding, but "lm_head.weight" differs from'
        ' "model.embed_tokens.weight". mlx-lm would drop that head.\n'
        "  transformers keeps such a head. Set `tie_word_embeddings` to false in config.json of the base."
    )


def test_the_hint_helps(tmp_path: Path) -> None:
    base = with_head(tmp_path / "base", TIED, 0.5)
    config = base / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    structure = inspect(base)
    assert structure.tied == ""
    assert "lm_head.weight" in structure.names


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [
        (dense("llama"), ""),
        (dense("gemma2"), "model.embed_tokens"),
        (dense("gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=128, n_ctx=128), "model.wte"),
        (dense("cohere"), "model.embed_tokens"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_which_embedding_is_the_head(architecture: Architecture, tied: str, tmp_path: Path) -> None:
    assert inspect(checkpoint(tmp_path / "base", architecture)).tied == tied
