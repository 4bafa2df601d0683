"""A SentencePiece vocabulary for llama.cpp, from the merges of a tokenizer that falls back to bytes.

llama.cpp joins the two neighbours whose piece has the highest score. A tokenizer.json joins those whose merge
stands first. So the score of a piece is the place of its first merge, from the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.console.words import one_line
from builder.gguf.settings import Unwritable

_SPACE = "\u2581"  # stands for a space inside of a piece
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LOWEST = -1e6  # the score of a piece that nothing is joined to


@dataclass(frozen=True)
class Pieces:
    """What a GGUF says of such a vocabulary beside its tokens. `scores` are by token."""

    scores: Mapping[str, float]
    bytes: frozenset[str]
    unknown: str | None
    prefix: bool  # llama.cpp puts a space before a text, and before a text after a special token


def effective(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer of a folder as transformers makes it, in the terms of tokenizer.json; and special tokens.

    transformers builds it from tokenizer.model, or anew from the vocabulary and the merges of tokenizer.json.
    Raises Unwritable.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        said: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # it reads files of strangers with code of many authors
        raise Unwritable(f"its tokenizer cannot be loaded ({one_line(error, 160)})") from error
    return said, {name: str(token) for name, token in tokenizer.special_tokens_map.items() if token}


def pieces(said: Mapping[str, Any], has_template: bool) -> Pieces:
    """The pieces of a tokenizer of type BPE that falls back to bytes. Raises Unwritable."""
    model = said["model"]
    vocabulary: Mapping[str, int] = model["vocab"]
    scores: dict[str, float] = {}
    for place, merge in enumerate(model.get("merges") or ()):
        joined = "".join(merge) if not isinstance(merge, str) else merge.replace(" ", "", 1)
        scores.setdefault(joined, -float(place))
    if not scores:
        raise Unwritable("its tokenizer merges nothing, and llama.cpp needs the order of merges")
    in_bytes = frozenset(token for token in vocabulary if _BYTE.fullmatch(token))
    if len(in_bytes) < 256:
        raise Unwritable(f"its tokenizer falls back to bytes, and has {len(in_bytes)} tokens for them")
    added = {str(each["content"]) for each in said.get("added_tokens") or ()}
    known = scores.keys() | in_bytes | added
    stray = next((t for t in vocabulary if t not in known and len(t) > 1 and _is_joined(t, vocabulary)), None)
    if stray is not None:
        raise Unwritable(f"its tokenizer never makes the token {stray[:40]!r}, and llama.cpp would")
    for token in vocabulary:
        scores.setdefault(token, _LOWEST)
    return Pieces(scores, in_bytes, model.get("unk_token"), _prefix(said, has_template))


def _is_joined(token: str, vocabulary: Mapping[str, int]) -> bool:
    return any(token[:at] in vocabulary and token[at:] in vocabulary for at in range(1, len(token)))


def _prefix(said: Mapping[str, Any], has_template: bool) -> bool:
    """Whether llama.cpp must put a space before a text. Raises Unwritable for any other preparation."""
    steps = _steps(said.get("normalizer"), "normalizers")
    kinds = [step.get("type") for step in steps]
    cuts = _steps(said.get("pre_tokenizer"), "pretokenizers")
    match kinds, [cut.get("type") for cut in cuts]:
        case ((["Replace"] | ["Prepend", "Replace"]), ([] | ["Split"])) if _is_plain(steps, cuts):
            return kinds[0] == "Prepend"
        case [], ["Metaspace"] if cuts[0].get("replacement") == _SPACE and not cuts[0].get("split", True):
            scheme = cuts[0].get("prepend_scheme")
            # "first": only a text that begins without a special token gets the space, and no chat does.
            return scheme == "always" or (scheme == "first" and not has_template)
    raise Unwritable("its tokenizer prepares a text in a way that llama.cpp does not (normalizer)")


def _is_plain(steps: list[Mapping[str, Any]], cuts: list[Mapping[str, Any]]) -> bool:
    """Each space becomes the sign for it, and nothing else happens: afterwards no cut finds a space."""
    replaced = steps[-1]
    by_sign = replaced.get("pattern") == {"String": " "} and replaced.get("content") == _SPACE
    prepended = len(steps) == 1 or steps[0].get("prepend") == _SPACE
    return by_sign and prepended and all(cut.get("pattern") == {"String": " "} for cut in cuts)


def _steps(said: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if not said:
        return []
    return list(said[inner]) if said.get("type") == "Sequence" else [said]
