"""What a file in a model's folder is, by its name: weights, tokenizer, template, or a left-over.

A name is relative to the folder. Further chat templates lie one folder deep, where transformers keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from builder.store.disk.names import is_hidden

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"  # transformers.utils.hub.CHAT_TEMPLATE_DIR

# What the tokenizers of transformers call their vocabularies (VOCAB_FILES_NAMES of each tokenizer), and what
# tokenizers call them that come with a model's own code.
_VOCABULARIES = frozenset(
    {
        "tokenizer.json", "tokenizer.model", "tokenizer.jsonl", "tiktoken.model", "tekken.json",
        "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "spm.model",
        "spm_char.model", "prophetnet.tokenizer", "vocab.json", "vocab.txt", "vocab.bpe",
        "bpe.codes", "encoder.json", "dict.txt", "byte_maps.json", "vocab-src.json",
        "vocab-tgt.json", "target_vocab.json", "entity_vocab.json", "emoji.json",
    }
)  # fmt: skip
_VOCABULARY_SUFFIXES = (".tiktoken", ".spm", ".model")
_BESIDE_A_VOCABULARY = frozenset(
    {"merges.txt", "added_tokens.json", "special_tokens_map.json", "normalizer.json"}
)
_COPIED_SUFFIXES = (".json", ".jinja", ".py", *_VOCABULARY_SUFFIXES)
# Left beside a model by training or by another quantizer. None of these files is a part of the model. With
# adapter_config.json, transformers would take the folder for an adapter.
_LEFT_OVER = frozenset(
    {
        "adapter_config.json", "trainer_state.json", "trainer_config.json", "all_results.json",
        "train_results.json", "eval_results.json", "predict_results.json", "zero_to_fp32.py",
        "quantize_config.json", "quant_config.json", "hf_quant_config.json", "artifact.toml",
    }
)  # fmt: skip
_LEFT_OVER_PREFIXES = (
    "training_args.",
    "training_params.",
    "optimizer.",
    "optimizer-",
    "scheduler.",
    "scaler.",
    "rng_state",
    "random_states",
    "adapter_model.",
    "adapters.",
)


def is_shard(name: str) -> bool:
    """Whether mlx-lm loads a file as weights."""
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name


def is_vocabulary(name: str) -> bool:
    """Whether a tokenizer can be made from this file (with others beside it)."""
    return (
        name in _VOCABULARIES
        or name.endswith(_VOCABULARY_SUFFIXES)
        or name.startswith("tokenizer.model.v")
        or (name.endswith(".txt") and "vocab" in name)
    )


def makes_tokens(name: str) -> bool:
    """Whether a file says how text becomes tokens: vocabularies, what goes with them, and code."""
    return is_vocabulary(name) or name in _BESIDE_A_VOCABULARY or name.endswith(".py")


def is_template(name: str) -> bool:
    """Whether a file is a chat template. tokenizer_config.json may hold a template too."""
    return name.endswith(".jinja") or name == "chat_template.json"


def is_left_over(name: str) -> bool:
    """Whether training, or another quantizer, left a file beside the model."""
    return name in _LEFT_OVER or name.startswith(_LEFT_OVER_PREFIXES) or name.endswith(".index.json")


def is_copied(name: str) -> bool:
    """Whether every target gets a copy of this file of its base."""
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and file.endswith(".jinja") and not is_hidden(file)
    if name == CONFIG or is_left_over(name):
        return False
    return is_vocabulary(name) or name in _BESIDE_A_VOCABULARY or name.endswith(_COPIED_SUFFIXES)


def shards_of_series(names: Iterable[str]) -> set[str]:
    """Every shard of the series that the names belong to: one of model-00002-of-00003 stands for three."""
    found = set()
    for name in names:
        if match := re.fullmatch(r"model-(\d{5})-of-(\d{5})\.safetensors", name):
            count = int(match[2])
            found |= {f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
        else:
            found.add(name)
    return found
