"""What could be declared here: adapters and models in a folder and in the Hugging Face cache. Only looks."""

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

DEEPEST = 4
_SKIPPED = frozenset({"node_modules", "store", "__pycache__", "site-packages", "venv"})
_ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class FoundBase:
    """`lines` of TOML that declare it, `aliases`: what an adapter may call it, `quantized`: already."""

    name: str
    lines: tuple[str, ...]
    aliases: frozenset[str]
    quantized: bool = False


@dataclass(frozen=True)
class FoundAdapter:
    """`base`: what its own configuration says it was trained on, if it does."""

    name: str
    path: str
    base: str | None


@dataclass(frozen=True)
class Nearby:
    """`bases` lie in the folder, or an adapter names their folder; `cached`: in Hugging Face's cache."""

    bases: tuple[FoundBase, ...]
    adapters: tuple[FoundAdapter, ...]
    cached: tuple[FoundBase, ...] = ()


def look(folder: Path, cache: Path | None = None) -> Nearby:
    """Everything below `folder`, at most DEEPEST folders deep, and the models in Hugging Face's cache.

    Names are short and may be the same; whoever declares them makes them differ.
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
        elsewhere = folder / Path(said).expanduser()  # said relative to here, or absolute
        if said not in known and str(elsewhere) not in known and _is_model(elsewhere):
            bases.append(_local(elsewhere, said))
    return Nearby(tuple(bases), tuple(adapters), cached)


def plain_name(text: str) -> str:
    """A legal, short name made of a file's or repository's name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"-(instruct|it|chat|bf16|fp16|f16)$", "", name)[:32].strip("-") or "base"


def quoted(text: str) -> str:
    """As TOML writes it."""
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
    """Not what a file can be called, but no TOML file can say."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_model(place: Path) -> bool:
    """A folder in Hugging Face layout."""
    try:
        return (place / "config.json").is_file() and any(_is_weights(file.name) for file in place.iterdir())
    except OSError:
        return False


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _local(place: Path, shown: str) -> FoundBase:
    aliases = frozenset({shown, place.name, str(place)})
    return FoundBase(plain_name(place.name), (f"path = {quoted(shown)}",), aliases, _is_quantized(place))


def _is_quantized(place: Path) -> bool:
    """mlx-lm says `quantization`, and so do others with `quantization_config`."""
    config = _json(place / "config.json")
    return bool(config.get("quantization") or config.get("quantization_config"))


def _trained_on(place: Path) -> str | None:
    """mlx-lm says `model`, PEFT says `base_model_name_or_path`."""
    config = _json(place / "adapter_config.json")
    said = config.get("model") or config.get("base_model_name_or_path")
    return said if isinstance(said, str) and _is_text(said) else None


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing when it cannot be read."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _cached(cache: Path) -> Iterator[FoundBase]:
    for folder in sorted(cache.glob("models--*--*")):
        _, organisation, *rest = folder.name.split("--")
        repo = f"{organisation}/{'--'.join(rest)}"
        for snapshot in sorted(folder.glob("snapshots/*")):
            if _is_model(snapshot):
                lines = (f"hf = {quoted(repo)}", f"revision = {quoted(snapshot.name)}")
                aliases = frozenset({repo, str(snapshot)})
                yield FoundBase(plain_name(rest[-1]), lines, aliases, _is_quantized(snapshot))
                break
