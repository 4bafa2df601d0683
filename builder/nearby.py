"""What could be declared here: adapters and models in a folder and in the Hugging Face cache. Only looks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEEPEST = 4
_SKIPPED = frozenset({"node_modules", "store", "__pycache__", "site-packages", "venv"})
_ADAPTER_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class FoundBase:
    """`lines` of TOML that declare it, `aliases`: what an adapter may call it."""

    name: str
    lines: tuple[str, ...]
    aliases: frozenset[str]


@dataclass(frozen=True)
class FoundAdapter:
    """`base`: what its own configuration says it was trained on, if it does."""

    name: str
    path: str
    base: str | None


@dataclass(frozen=True)
class Nearby:
    bases: tuple[FoundBase, ...]
    adapters: tuple[FoundAdapter, ...]


def look(folder: Path, cache: Path | None = None) -> Nearby:
    """Everything below `folder`, at most DEEPEST folders deep, and the models in Hugging Face's cache."""
    bases: list[FoundBase] = []
    adapters: list[FoundAdapter] = []
    for place, names in _folders(folder):
        shown = place.relative_to(folder).as_posix()
        if any(name in names for name in _ADAPTER_WEIGHTS) and "adapter_config.json" in names:
            adapters.append(FoundAdapter(plain_name(place.name), shown, _trained_on(place)))
        elif "config.json" in names and any(_is_weights(name) for name in names):
            aliases = frozenset({shown, place.name, str(place)})
            bases.append(FoundBase(plain_name(place.name), (f"path = {_quoted(shown)}",), aliases))
        for name in sorted(names):
            if name.endswith(".gguf"):
                file = (place / name).relative_to(folder).as_posix()
                stem = plain_name(name.removesuffix(".gguf"))
                bases.append(FoundBase(stem, (f"gguf = {_quoted(file)}",), frozenset({file, name})))
    bases += _cached(cache if cache is not None else hub_cache())
    return Nearby(tuple(_distinct(bases)), tuple(_renamed(adapters)))


def plain_name(text: str) -> str:
    """A legal, short name made of a file's or repository's name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return re.sub(r"-(instruct|it|chat|bf16|fp16|f16)$", "", name)[:32].strip("-") or "base"


def hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", str(home / "hub"))).expanduser()


def _folders(top: Path) -> Iterator[tuple[Path, set[str]]]:
    for place, folders, names in os.walk(top):
        depth = len(Path(place).relative_to(top).parts)
        folders[:] = sorted(
            name for name in folders if depth < DEEPEST and name not in _SKIPPED and not name.startswith(".")
        )
        yield Path(place), set(names)


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _trained_on(place: Path) -> str | None:
    """mlx-lm says `model`, PEFT says `base_model_name_or_path`."""
    try:
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    said = config.get("model") or config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return said if isinstance(said, str) else None


def _cached(cache: Path) -> Iterator[FoundBase]:
    for folder in sorted(cache.glob("models--*--*")):
        _, organisation, *rest = folder.name.split("--")
        repo = f"{organisation}/{'--'.join(rest)}"
        for snapshot in sorted(folder.glob("snapshots/*")):
            if (snapshot / "config.json").exists() and any(_is_weights(f.name) for f in snapshot.iterdir()):
                lines = (f"hf = {_quoted(repo)}", f"revision = {_quoted(snapshot.name)}")
                yield FoundBase(plain_name(rest[-1]), lines, frozenset({repo, str(snapshot)}))
                break


def _distinct(bases: Iterable[FoundBase]) -> Iterator[FoundBase]:
    seen: dict[str, int] = {}
    for base in bases:
        yield FoundBase(_numbered(base.name, seen), base.lines, base.aliases)


def _renamed(adapters: Iterable[FoundAdapter]) -> Iterator[FoundAdapter]:
    seen: dict[str, int] = {}
    for adapter in adapters:
        yield FoundAdapter(_numbered(adapter.name, seen), adapter.path, adapter.base)


def _numbered(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# -- the proposal ------------------------------------------------------------------------------------------

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "f16": (
        'dtype = "float16"',
        "intermediate = true                 # exists only while something needs it",
    ),
    "4bit": ("bits = 4", "group_size = 64"),
    "5bit": ("bits = 5", "group_size = 64"),
    "6bit": ("bits = 6", "group_size = 64"),
    "8bit": ("bits = 8", "group_size = 64"),
}


def propose(found: Nearby, schema: str) -> str:
    """A commented artifacts.toml that declares what was found."""
    bases = list(found.bases)
    models: list[tuple[str, str]] = []
    adapters: list[str] = []
    for adapter in found.adapters:
        base = _base_of(adapter, bases)
        remark = "" if adapter.base else "    # EDIT: the adapter does not say what it was trained on"
        adapters.append(
            f"[adapter.{adapter.name}]\nbase = {_quoted(base)}{remark}\npath = {_quoted(adapter.path)}\n"
        )
        models.append((adapter.name, f"adapter = {_quoted(adapter.name)}"))
    if not bases:
        remark = "# EDIT: a folder in Hugging Face layout, or gguf, or hf and revision"
        bases.append(FoundBase("base", (f'path = "models/base"    {remark}',), frozenset()))
    if not models:
        adapters.append(
            "# [adapter.tuned]                   # what was learned on top of a base\n"
            f'# base = {_quoted(bases[0].name)}\n# path = "adapters/tuned"\n'
        )
        models = [(bases[0].name, f"base = {_quoted(bases[0].name)}")]
    quantized = json.dumps([name for name in VARIANTS if name != "f16"])
    parts = [
        f"#:schema {schema}",
        "# What is built here, and from what. `doit` builds it, `doit plan` says what that costs.\n",
        "# -- where the original weights come from",
        *(f"[base.{base.name}]\n" + "\n".join(base.lines) + "\n" for base in bases),
        "# -- what was learned on top of a base (mlx-lm or PEFT layout)",
        *adapters,
        "# -- how weights are stored; declared once, used by any model",
        *(f"[variant.{name}]\n" + "\n".join(lines) + "\n" for name, lines in VARIANTS.items()),
        "# -- what to build: each model x variant is a target, MODEL_VARIANT",
        *(f"[model.{name}]\n{source}\nvariants = {quantized}\n" for name, source in models),
    ]
    return "\n".join(parts)


def _base_of(adapter: FoundAdapter, bases: list[FoundBase]) -> str:
    """The name of the base that an adapter was trained on; adds one to `bases` when it is not here."""
    said = adapter.base
    if said is None:
        if not bases:
            bases.append(
                FoundBase("base", ('path = "models/base"    # EDIT: where the base is',), frozenset())
            )
        return bases[0].name
    for base in bases:
        if said in base.aliases or Path(said).name in base.aliases:
            return base.name
    name = plain_name(Path(said).name)
    lines: tuple[str, ...] = (f"path = {_quoted(said)}    # EDIT: not found here",)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", said) and not said.startswith("."):
        lines = (f"hf = {_quoted(said)}", 'revision = "main"    # a commit never changes; a branch may')
    bases.append(FoundBase(name, lines, frozenset({said})))
    return name
