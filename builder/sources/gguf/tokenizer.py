"""Writes the tokenizer of a GGUF as Hugging Face files: byte-level BPE with a known pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
PRE_TOKENIZERS = ("smollm", "gpt-2", *_LLAMA3_NAMES)
_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot"}


class Unsupported(ValueError):
    """A tokenizer that cannot be written as Hugging Face files. The text says why."""


@dataclass(frozen=True)
class _Vocabulary:
    """A checked vocabulary. `ids` maps bos, eos, pad, unk and eot to token ids where the GGUF has them."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    ids: Mapping[str, int]
    pre: str

    def token(self, name: str) -> str | None:
        return self.tokens[self.ids[name]] if name in self.ids else None


def tokenizer_files(metadata: Mapping[str, Any], context: int, rows: int) -> dict[str, bytes]:
    """File name -> bytes: tokenizer.json, tokenizer_config.json and, for a template, chat_template.jinja.

    `context` is the longest text in tokens. `rows` is how many rows the embedding has. Raises Unsupported.
    """
    vocabulary = _vocabulary(metadata)
    if len(vocabulary.tokens) > rows:
        raise Unsupported(f"has {len(vocabulary.tokens)} tokens, but an embedding of {rows} rows")
    files = {
        "tokenizer.json": _tokenizer_json(vocabulary, metadata),
        "tokenizer_config.json": _config_json(vocabulary, context),
    }
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise Unsupported("has a chat template that is not text")
    if template:
        files["chat_template.jinja"] = template.encode()
    return files


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """The ids of bos, eos and pad under the names of config.json. Raises Unsupported.

    eos is a list of two ids if another token (eot) ends a turn.
    """
    ids = _vocabulary(metadata).ids
    found: dict[str, int | list[int]] = {f"{n}_token_id": ids[n] for n in ("bos", "eos", "pad") if n in ids}
    if ids.get("eot", ids["eos"]) != ids["eos"]:
        found["eos_token_id"] = [ids["eos"], ids["eot"]]
    return found


def _vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    """The parts of the tokenizer, checked against each other. Raises Unsupported."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        shown = str(kind)[:80]
        raise Unsupported(f'has a tokenizer of kind "{shown}"; only byte-level BPE ("gpt2") can be imported')
    if pre not in PRE_TOKENIZERS:
        raise Unsupported(f'has pre-tokenizer "{str(pre)[:80]}"; known are {", ".join(PRE_TOKENIZERS)}')
    tokens = _texts(metadata, "tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise Unsupported("does not say the type of each token")
    known = set(tokens)
    if len(known) < len(tokens):
        raise Unsupported("has a token twice")
    merges = [_pair(merge, known) for merge in _texts(metadata, "merges")]
    ids = {}
    for name, key in _IDS.items():
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            raise Unsupported(f"has {key}_token_id {str(value)[:80]}, which is not a token")
        ids[name] = value
    if "eos" not in ids:
        raise Unsupported("does not say which token ends a text (tokenizer.ggml.eos_token_id)")
    return _Vocabulary(tokens, types, merges, ids, str(pre))


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise Unsupported(f"lacks a part of its tokenizer (tokenizer.ggml.{name})")
    return values


def _pair(merge: str, known: set[str]) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or not {left, right, left + right} <= known:
        raise Unsupported(f"merges {merge[:80]!a}, which are not tokens")
    return left, right


def _tokenizer_json(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> bytes:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    llama3 = vocabulary.pre in _LLAMA3_NAMES
    tokens = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.BPE(
        vocab=tokens, merges=vocabulary.merges, unk_token=vocabulary.token("unk"), ignore_merges=llama3
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary.pre)
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    special = [AddedToken(t, special=True, normalized=False) for t, kind in typed if kind == _CONTROL]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == _USER_DEFINED])
    if processor := _post_processor(vocabulary, metadata, llama3):
        tokenizer.post_processor = processor
    return str(tokenizer.to_str(pretty=True)).encode()


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre in _LLAMA3_NAMES:
        split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _post_processor(vocabulary: _Vocabulary, metadata: Mapping[str, Any], llama3: bool) -> Any:
    """The processor that puts bos and eos around a text where the GGUF asks for them, or None.

    Where the GGUF says nothing, only Llama 3 gets bos, as in llama.cpp.
    """
    from tokenizers import processors

    wanted = {"bos": metadata.get("tokenizer.ggml.add_bos_token", llama3)}
    wanted["eos"] = metadata.get("tokenizer.ggml.add_eos_token", False)
    tokens = {name: vocabulary.token(name) for name, wish in wanted.items() if wish}
    added = {name: token for name, token in tokens.items() if token is not None}
    if not added:
        return None
    if any(" " in token or ":" in token or "$" in token for token in added.values()):
        raise Unsupported(f"adds tokens that cannot be written in a template ({list(added.values())})")
    single = [*([added["bos"]] if "bos" in added else []), "$A", *([added["eos"]] if "eos" in added else [])]
    return processors.TemplateProcessing(
        single=" ".join(single),
        pair=" ".join([*single, *(piece.replace("$A", "$B") + ":1" for piece in single)]),
        special_tokens=[(token, vocabulary.ids[name]) for name, token in added.items()],
    )


def _config_json(vocabulary: _Vocabulary, context: int) -> bytes:
    special = {f"{name}_token": vocabulary.token(name) for name in ("bos", "eos", "pad", "unk")}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{name: token for name, token in special.items() if token is not None},
    }
    return json.dumps(config, indent=2, sort_keys=True).encode()
