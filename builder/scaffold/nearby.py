"""Finds what could be declared: adapters and models in a folder and in the Hugging Face cache. Only looks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.sources import hub
from builder.store.disk.names import is_hidden
from builder.weights.foreign import foreign, is_packed
from builder.weights.headers import headers

DEEPEST = 4
_SKIPPED = frozenset({"node_modules", "store", "__pycache__", "site-packages", "venv"})
_ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class FoundBase:
    """A base that was found. `lines` of TOML declare the base.

    `aliases` are the names that an adapter may use for the base. `quantized` says that the base is quantized
    already. `unreadable` names the method if mlx-lm cannot read weights that are quantized so.
    """

    name: str
    lines: tuple[str, ...]
    aliases: frozenset[str]
    quantized: bool = False
    unreadable: str = ""


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter that was found. `base` is what its configuration names as its base, or None."""

    name: str
    path: str
    base: str | None


@dataclass(frozen=True)
class Nearby:
    """What was found. `bases` are in the folder, or in a folder that an adapter names.

    `cached` are in the Hugging Face cache.
    """

    bases: tuple[FoundBase, ...]
    adapters: tuple[FoundAdapter, ...]
    cached: tuple[FoundBase, ...] = ()


def look(folder: Path, cache: Path | None = None) -> Nearby:
    """What is below `folder`, at most DEEPEST folders deep, and the models in the Hugging Face cache.

    Names are short, and two may be equal. The caller must make them differ.
    """
    bases: list[FoundBase] = []
    adapters: list[FoundAdapter] = []
    for place, names in _folders(folder):
        shown = place.relative_to(folder).as_posix()
        if any(name in names for name in _ADAPTER_WEIGHTS) and "adapter_config.json" in names:
            adapters.append(FoundAdapter(plain_name(place.name), shown, _trained_on(place)))
        elif _is_model(place):
            bases.append(_local(place, shown))
        for name in sorted(names):
            if name.endswith(".gguf") and _is_text(name) and not is_hidden(name):
                file = (place / name).relative_to(folder).as_posix()
                stem = plain_name(name.removesuffix(".gguf"))
                bases.append(FoundBase(stem, (f"gguf = {quoted(file)}",), frozenset({file, name})))
    cached = tuple(_cached(cache if cache is not None else hub.cache()))
    known = {alias for base in (*bases, *cached) for alias in base.aliases}
    for said in dict.fromkeys(adapter.base for adapter in adapters if adapter.base):
        elsewhere = folder / Path(said).expanduser()  # relative to `folder`, or absolute
        if said not in known and str(elsewhere) not in known and _is_model(elsewhere):
            bases.append(_local(elsewhere, said))
    return Nearby(tuple(bases), tuple(adapters), cached)


def plain_name(text: str) -> str:
    """A legal, short name for a declaration, made from the name of a file or a repository."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"-(instruct|it|chat|bf16|fp16|f16)$", "", name)[:32].strip("-") or "base"


def quoted(text: str) -> str:
    """A string as TOML writes it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _folders(top: Path) -> Iterator[tuple[Path, set[str]]]:
    for place, folders, names in os.walk(top):
        depth = len(Path(place).relative_to(top).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < DEEPEST and name not in _SKIPPED and not is_hidden(name) and _is_text(name)
        )
        yield Path(place), set(names)


def _is_text(name: str) -> bool:
    """Whether a file name can stand in a TOML file. False for names that are not Unicode text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_model(place: Path) -> bool:
    """Whether a folder has the Hugging Face layout."""
    try:
        return (place / "config.json").is_file() and any(_is_weights(file.name) for file in place.iterdir())
    except OSError:
        return False


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _local(place: Path, shown: str) -> FoundBase:
    aliases = frozenset({shown, place.name, str(place)})
    return FoundBase(plain_name(place.name), (f"path = {quoted(shown)}",), aliases, *_quantization(place))


def _quantization(place: Path) -> tuple[bool, str]:
    """Whether a model is quantized so that `dequantize = true` works, else the method, or an empty text."""
    config = _json(place / "config.json")
    if config.get("quantization"):
        return True, ""
    method = foreign(config, _json(place / "hf_quant_config.json"))
    tensors = headers(place) if method is not None else {}
    if method is None or (tensors and not is_packed(tensor.dtype for tensor in tensors.values())):
        return False, ""  # a key that was left over: the weights are plain
    return (True, "") if method.can_be_dequantized else (False, method.method)


def _trained_on(place: Path) -> str | None:
    """The base in an adapter's config: `model` (mlx-lm) or `base_model_name_or_path` (PEFT), or None."""
    config = _json(place / "adapter_config.json")
    said = config.get("model") or config.get("base_model_name_or_path")
    return said if isinstance(said, str) and _is_text(said) else None


def _json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Empty when the file cannot be read."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _cached(cache: Path) -> Iterator[FoundBase]:
    for folder in sorted(cache.glob("models--*--*")):
        _, organisation, *rest = folder.name.split("--")
        repo = f"{organisation}/{'--'.join(rest)}"
        main = folder / "snapshots" / (hub.main_commit(folder) or "")
        for snapshot in sorted(folder.glob("snapshots/*"), key=lambda found: (found != main, found.name)):
            if _is_model(snapshot):
                lines = (f"hf = {quoted(repo)}", f"revision = {quoted(snapshot.name)}")
                aliases = frozenset({repo, str(snapshot)})
                yield FoundBase(plain_name(rest[-1]), lines, aliases, *_quantization(snapshot))
                break
