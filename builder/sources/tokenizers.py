"""The tokenizer and the chat templates that training saved beside an adapter, against those of the base.

TRL, Unsloth and axolotl save them into the adapter's folder, as they were when the adapter was trained. A
target gets those of the base, unless the declaration says `tokenizer = "adapter"`. What differs is said in
either case.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.console.words import listed
from builder.sources.contents import (
    TEMPLATES,
    TOKENIZER_CONFIG,
    is_copied,
    is_template,
    is_vocabulary,
    makes_tokens,
)
from builder.store.types import FileEntry

Read = Callable[[str], bytes]  # the bytes of a small file, by its name
_HOW_IT_WAS_CALLED = frozenset({"truncation", "padding", "version"})  # no part of what a tokenizer.json does
_SPECIAL = ("bos_token", "eos_token", "unk_token")


def own_files(folder: Path) -> tuple[str, ...]:
    """The files of a tokenizer in an adapter's folder, by their names in it."""
    inner = folder / TEMPLATES
    places = [(folder, ""), *([(inner, f"{TEMPLATES}/")] if inner.is_dir() else [])]
    names = [
        f"{before}{entry.name}" for place, before in places for entry in place.iterdir() if entry.is_file()
    ]
    return tuple(sorted(name for name in names if is_copied(name) and _is_tokenizers(name)))


def dressed(base: Sequence[FileEntry], own: Sequence[FileEntry], own_template: bool) -> tuple[FileEntry, ...]:
    """The base's copied files with the adapter's tokenizer in place of the base's.

    A vocabulary replaces the whole vocabulary, a template all templates. What the adapter lacks stays the
    base's.
    """
    names = {entry.name for entry in own}
    has_words = any(is_vocabulary(name) for name in names)
    kept = [
        entry
        for entry in base
        if entry.name not in names
        and not (has_words and _is_words(entry.name))
        and not (own_template and is_template(entry.name))
    ]
    return tuple(sorted([*kept, *own], key=lambda entry: entry.name))


def has_template(names: Iterable[str], read: Read) -> bool:
    """Whether these files hold a chat template."""
    return bool(_templates(frozenset(names), read))


def differences(base: Iterable[str], read_base: Read, own: Iterable[str], read_own: Read) -> tuple[str, ...]:
    """What the adapter's files say otherwise than the base's, each in a few words."""
    theirs, ours = frozenset(base), frozenset(own)
    found = []
    template = _templates(ours, read_own)
    if template and template != _templates(theirs, read_base):
        found.append("another chat template")
    added, known = _added(ours, read_own), _added(theirs, read_base)
    if more := sorted(added - known):
        found.append(f"added tokens ({listed([reprlib.repr(token) for token in more])})")
    if any(is_vocabulary(name) for name in ours) and (fewer := sorted(known - added)):
        found.append(f"no tokens {listed([reprlib.repr(token) for token in fewer])}")
    mine, its = _object(TOKENIZER_CONFIG, ours, read_own), _object(TOKENIZER_CONFIG, theirs, read_base)
    for key in _SPECIAL:
        if mine.get(key) is not None and _token(mine[key]) != _token(its.get(key)):
            found.append(f"another {key}")
    if not (more or known - added):
        same = ours & theirs
        found += [f"another {name}" for name in sorted(same) if _other_words(name, read_own, read_base)]
    return tuple(found)


def _is_words(name: str) -> bool:
    return (makes_tokens(name) and not name.endswith(".py")) or name == TOKENIZER_CONFIG


def _is_tokenizers(name: str) -> bool:
    return _is_words(name) or is_template(name)


def _other_words(name: str, read_own: Read, read_base: Read) -> bool:
    if not is_vocabulary(name):
        return False
    mine, its = _bytes(name, read_own), _bytes(name, read_base)
    if mine == its or name != "tokenizer.json":
        return mine != its
    parsed = [_parsed(text) for text in (mine, its)]
    return _without_calls(parsed[0]) != _without_calls(parsed[1])


def _without_calls(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in _HOW_IT_WAS_CALLED}


def _templates(names: frozenset[str], read: Read) -> dict[str, str]:
    """The chat templates by name, from the places where transformers looks, the last one winning."""
    found: dict[str, str] = {}
    for file in (TOKENIZER_CONFIG, "chat_template.json"):
        said = _object(file, names, read).get("chat_template")
        if isinstance(said, str):
            found["default"] = said
        for each in said if isinstance(said, list) else ():
            if isinstance(each, dict) and isinstance(each.get("name"), str):
                found[each["name"]] = str(each.get("template"))
    for name in sorted(name for name in names if name.endswith(".jinja")):
        text = _bytes(name, read).decode("utf-8", errors="replace")
        found["default" if "/" not in name else name.rpartition("/")[2].removesuffix(".jinja")] = text
    return found


def _added(names: frozenset[str], read: Read) -> frozenset[str]:
    """The tokens that are added to the vocabulary."""
    found = set()
    listed_tokens = _object("tokenizer.json", names, read).get("added_tokens")
    for token in listed_tokens if isinstance(listed_tokens, list) else ():
        found.add(_token(token))
    decoder = _object(TOKENIZER_CONFIG, names, read).get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        found.add(_token(token))
    found |= set(_object("added_tokens.json", names, read))
    return frozenset(token for token in found if token is not None)


def _token(value: object) -> str | None:
    """A token, which is written as a text or as an object with its `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _object(name: str, names: frozenset[str], read: Read) -> dict[str, Any]:
    return _parsed(_bytes(name, read)) if name in names else {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _bytes(name: str, read: Read) -> bytes:
    try:
        return read(name)
    except OSError:
        return b""
