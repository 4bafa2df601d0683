"""The tokenizer of a GGUF as Hugging Face files: byte-level BPE with a known pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SPECIAL = 3  # tokenizer.ggml.token_type of control tokens
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = ("smollm", "gpt-2", "default", "llama-bpe")


class Unsupported(ValueError):
    """A tokenizer that cannot be written as Hugging Face files; the text says why."""


def tokenizer_files(metadata: Mapping[str, Any], context: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.

    Raises Unsupported.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise Unsupported(f'has a tokenizer of kind "{kind}"; only byte-level BPE ("gpt2") can be imported')
    if pre not in PRE_TOKENIZERS:
        raise Unsupported(f'has pre-tokenizer "{pre}"; known are {", ".join(PRE_TOKENIZERS)}')
    try:
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    except (KeyError, AttributeError) as error:
        raise Unsupported(f"lacks a part of its tokenizer ({error})") from error
    special = [token for token, kind in zip(tokens, types, strict=False) if kind == _SPECIAL]
    files = {
        "tokenizer.json": _tokenizer_json(tokens, merges, special, pre, _token(metadata, "unknown")),
        "tokenizer_config.json": _config_json(metadata, context),
    }
    if template := metadata.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = template.encode()
    return files


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """bos, eos and pad token ids that the GGUF names, under the names of config.json."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: int(value) for name, value in found.items() if value is not None}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _token(metadata: Mapping[str, Any], key: str) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    tokens = metadata["tokenizer.ggml.tokens"]
    return tokens[index] if isinstance(index, int) and index < len(tokens) else None


def _tokenizer_json(
    tokens: list[str], merges: list[tuple[str, str]], special: list[str], pre: str, unknown: str | None
) -> bytes:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown))
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "llama-bpe")
    if pre == "smollm":
        first: Any = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_level])
    elif pre == "llama-bpe":
        first = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_level])
    else:
        tokenizer.pre_tokenizer = bytes_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(tokenizer.to_str(pretty=True)).encode()


def _config_json(metadata: Mapping[str, Any], context: int) -> bytes:
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {name: _token(metadata, key) for name, key in names.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{name: token for name, token in special.items() if token is not None},
    }
    return json.dumps(config, indent=2, sort_keys=True).encode()
