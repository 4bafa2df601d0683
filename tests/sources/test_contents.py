"""Which files of a base belong to the model, by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from builder.sources.base import list_files
from builder.sources.contents import is_copied, is_template, is_vocabulary, makes_tokens
from builder.spec.types import Base, PathSource
from tests.tiny import make_base

VOCABULARIES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "source.spm",
    "qwen.tiktoken",
    "vocab.bpe",
    "encoder.json",
    "rwkv_vocab_v20230424.txt",
    "anything.model",
    "tekken.json",
    "tokenizer.jsonl",
    "vocab.txt",
    "vocab.json",
]
TOKENS = [*VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenization_x.py"]
OTHERS = [
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
]
NOT_COPIED = [
    "config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "README.md",
    "LICENSE.txt",
    "requirements.txt",
    "adapter_config.json",
    "adapter_model.safetensors",
    "trainer_state.json",
    "training_args.bin",
    "training_args.json",
    "optimizer.json",
    "optimizer.pt",
    "scheduler.json",
    "rng_state.json",
    "all_results.json",
    "zero_to_fp32.py",
    "hf_quant_config.json",
    "quantize_config.json",
    "artifact.toml",
    "additional_chat_templates/x.json",
    "additional_chat_templates/.hidden.jinja",
    "elsewhere/x.jinja",
    "consolidated.safetensors",
]


@pytest.mark.parametrize("name", [*TOKENS, *OTHERS])
def test_what_is_copied(name: str) -> None:
    assert is_copied(name)
    assert makes_tokens(name) is (name in TOKENS)
    assert is_vocabulary(name) is (name in VOCABULARIES)
    assert is_template(name) is ("template" in name)


@pytest.mark.parametrize("name", NOT_COPIED)
def test_what_is_not_copied(name: str) -> None:
    assert not is_copied(name)


def test_every_vocabulary_of_a_tokenizer_of_transformers_is_copied() -> None:
    import transformers.models

    names: set[str] = set()
    for file in Path(transformers.models.__path__[0]).glob("*/tokenization_*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VOCAB_FILES_NAMES":
                names |= set(ast.literal_eval(node.value).values())
    assert len(names) > 10
    assert [name for name in sorted(names) if not is_copied(name)] == []


def test_templates_in_their_folder_belong_to_a_base(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "b")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use.jinja", "rag.jinja", ".x.jinja", "notes.txt"):
        (folder / "additional_chat_templates" / name).write_text("x")
    found = list_files(Base("b", PathSource(folder)), folder)
    names = [found.name(path) for path in found.copied]
    assert names[-2:] == ["additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"]
