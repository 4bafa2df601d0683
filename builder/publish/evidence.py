"""What a card says beyond the target itself: the licence, the base, the system prompt. Reads small files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.project.opened import base_folder
from builder.project.project import Project
from builder.sources.gguf.header import read_gguf_header
from builder.sources.gguf.location import resolve_gguf
from builder.spec.destinations import Publication
from builder.spec.types import Base, GgufSource, HfSource, Model

_CARD = "README.md"
_MOST = 1 << 20


@dataclass(frozen=True)
class Licence:
    """`name` is the hub's name for it. `said` is the line that says so, and `where` the file of the line.

    `link` leads to the text of a licence that hubs do not know by name.
    """

    name: str
    said: str = ""
    where: str = ""
    title: str = ""
    link: str = ""


def licence(project: Project, publication: Publication, base: Base) -> Licence | None:
    """The declared licence, else that of the base's own card or GGUF. None: nobody says one."""
    found = _of_base(project, base)
    if publication.license is not None:
        said = (found.said, found.where) if found else ("", "")
        return Licence(publication.license, *said)
    return found


def warning(found: Licence | None) -> str | None:
    """What the base's licence forbids or asks for, in the words of the base. None where it is free."""
    if found is None:
        return 'the base\'s files name no licence, so the card names none; declare license = "..."'
    said = found.said.lower()
    quote = f'{found.where} of the base says "{found.said}"'
    words = set(said.replace(":", " ").replace('"', " ").replace("-", " ").split())
    if "nd" in words:
        return f"the base's licence may forbid publishing a changed model: {quote}"
    if "nc" in words or "noncommercial" in words:
        return f"the base's licence forbids commercial use, and so for this model: {quote}"
    if any(word in said for word in ("other", "llama", "gemma", "qwen", "research")):
        return f"the base has a licence of its own, read it before you publish: {quote}"
    return None


def _of_base(project: Project, base: Base) -> Licence | None:
    if isinstance(base.source, GgufSource):
        with suppress(BuildError):
            path = resolve_gguf(base.source.package, base.source.path, f"base.{base.name}")
            metadata = read_gguf_header(path, f"base.{base.name}").metadata
            if isinstance(name := metadata.get("general.license"), str):
                title, link = (str(metadata.get(f"general.license.{key}", "")) for key in ("name", "link"))
                return Licence(name, f"general.license: {name}", path.name, title, link)
        return None
    with suppress(BuildError, OSError):
        front = _front_matter(base_folder(project, base) / _CARD)
        if isinstance(name := front.get("license"), str):
            title, link = (str(front.get(key, "")) for key in ("license_name", "license_link"))
            return Licence(name, f"license: {name}", _CARD, title, link)
    return None


def _front_matter(card: Path) -> Mapping[str, Any]:
    """The front matter of a model card. Empty where there is none that can be read."""
    if not card.is_file() or card.stat().st_size > _MOST:
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    import yaml

    with suppress(yaml.YAMLError):
        found = yaml.safe_load(text[3:].partition("\n---")[0])
        return found if isinstance(found, dict) else {}
    return {}


def base_repository(publication: Publication, base: Base) -> str | None:
    """The hub's name of the base, for links. None where only a file is known."""
    if publication.base_model is not None:
        return publication.base_model
    return base.source.repo if isinstance(base.source, HfSource) else None


def system_prompt(project: Project, model: Model) -> str | None:
    """The system prompt that all questions of the model's suites share: what the fine-tune is used with."""
    found: set[str | None] = set()
    for name in model.suites:
        data = project.spec.suites[name].data
        if data is not None and data.suffix == ".jsonl":
            with suppress(OSError, ValueError, UnicodeDecodeError):
                found |= {_system(json.loads(line)) for line in data.open(encoding="utf-8") if line.strip()}
    return found.pop() if len(found) == 1 else None


def _system(row: object) -> str | None:
    messages = row.get("messages") if isinstance(row, dict) else None
    first = messages[0] if isinstance(messages, list) and messages else None
    is_system = isinstance(first, dict) and first.get("role") == "system"
    return str(first["content"]) if is_system and isinstance(first, dict) else None
