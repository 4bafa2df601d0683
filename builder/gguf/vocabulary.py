"""The tokenizer of a folder as keys of a GGUF: byte-level BPE whose way of cutting text llama.cpp knows, or
SentencePiece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.gguf.pieces import Pieces, effective, pieces
from builder.gguf.settings import Unwritable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_GPT4 + "{1,3}" + _REST: "llama-bpe", _GPT4 + _REST: "qwen2", _TEKKEN: "tekken"}


@dataclass(frozen=True)
class Vocabulary:
    """Everything that a GGUF says about tokens. `tokens` has one entry for each row of the embedding.

    `kind` is llama.cpp's name: gpt2 has `merges`, and llama (SentencePiece) has `scores`.
    """

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]  # bos, eos, eot, padding, unknown
    add_bos: bool
    template: str | None
    scores: tuple[float, ...] = ()
    prefix: bool = False  # a space before a text


def vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a folder whose embedding has `rows` rows. Raises Unwritable."""
    said, named = _said(folder)
    model = said["model"]
    config = {**_json(folder / "tokenizer_config.json"), **named}
    template = _template(folder, config)
    made = pieces(said, template is not None) if model.get("byte_fallback") else None
    pre = "default" if made else _pre_tokenizer(said)
    added = {int(each["id"]): each for each in said.get("added_tokens", ())}
    by_id = {int(index): str(token) for token, index in model["vocab"].items()}
    by_id |= {index: str(each["content"]) for index, each in added.items()}
    if max(by_id) >= rows:
        raise Unwritable(f"it has {max(by_id) + 1} tokens, and an embedding of {rows} rows")
    types = tuple(_type(index, by_id, added, made) for index in range(rows))
    tokens = tuple(by_id.get(index, f"[PAD{index}]") for index in range(rows))
    merges = tuple(each if isinstance(each, str) else " ".join(each) for each in model.get("merges", ()))
    if not merges:
        raise Unwritable("its tokenizer merges nothing, and llama.cpp wants merges")
    ids = _ids(folder, config, {token: index for index, token in by_id.items()})
    add_bos = _adds_bos(said, ids)
    if made is None:
        return Vocabulary("gpt2", pre, tokens, types, merges, ids, add_bos, template)
    scores = tuple(made.scores.get(token, 0.0) for token in tokens)
    return Vocabulary("llama", pre, tokens, types, (), ids, add_bos, template, scores, made.prefix)


def _said(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What tokenizer.json says, or would say, and the special tokens that only transformers knows.

    Raises Unwritable for a tokenizer of another kind.
    """
    file = folder / "tokenizer.json"
    said: dict[str, Any] = {}
    named: dict[str, str] = {}
    if file.is_file():
        said = json.loads(file.read_text(encoding="utf-8"))
    elif not (folder / "tokenizer.model").is_file():
        raise Unwritable("it has no tokenizer.json and no tokenizer.model")
    if not said or (said.get("model") or {}).get("byte_fallback"):
        said, named = effective(folder)
    model = said.get("model") or {}
    if model.get("type") != "BPE":
        kind = f"of type {model.get('type')}"
        raise Unwritable(f"its tokenizer is {kind}: it can be a byte-level BPE, or SentencePiece of type BPE")
    return said, named


def _type(index: int, tokens: Mapping[int, str], added: Mapping[int, Any], made: Pieces | None) -> int:
    token = tokens.get(index)
    if token is None:
        return UNUSED
    if made and token in made.bytes:
        return BYTE
    if made and token == (made.unknown or "<unk>"):
        return UNKNOWN
    if index in added:
        return CONTROL if added[index].get("special") else USER_DEFINED
    return NORMAL


def _pre_tokenizer(said: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a text is cut before it is merged. Raises Unwritable for any other way."""
    normalizer = (said.get("normalizer") or {}).get("type")
    steps = said.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    level = steps[-1] if kinds and kinds[-1] == "ByteLevel" else {}
    plain = not level.get("add_prefix_space", True) and normalizer in (None, "NFC")
    if plain and kinds == ["ByteLevel"] and level.get("use_regex", True):
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"] and not level.get("use_regex", True):
        name = _PATTERNS.get((steps[0].get("pattern") or {}).get("Regex", ""))
        if name and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return name
    raise Unwritable("its tokenizer cuts text in a way that llama.cpp may not know (pre_tokenizer)")


def _ids(folder: Path, config: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, int]:
    named = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    ids: dict[str, int] = {}
    for name, key in named.items():
        token = config.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in known:
            ids[name] = known[text]
    generation = {**_json(folder / "config.json"), **_json(folder / "generation_config.json")}
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else [*(ends or ())]
    if "eos" not in ids and ends:
        ids["eos"] = ends[0]
    if "eos" not in ids:
        raise Unwritable("its files do not say which token ends a text (eos_token)")
    if others := [end for end in ends if end != ids["eos"]]:
        ids["eot"] = others[0]
    return ids


def _adds_bos(said: Mapping[str, Any], ids: Mapping[str, int]) -> bool:
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(json.dumps(said)).encode("a").ids
    return bool(found) and found[0] == ids.get("bos")


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    said = config.get("chat_template")
    return said if isinstance(said, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    said = json.loads(file.read_text(encoding="utf-8"))
    return said if isinstance(said, dict) else {}
