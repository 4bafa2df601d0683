"""Where a target can be published, as frozen values, and the texts that name these places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from builder.console.words import listed, nearest, quoted

SCHEMES = ("hf", "lmstudio")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_LONGEST = 96  # characters of owner/name on the hub


@dataclass(frozen=True)
class FolderPlace:
    """A folder on this machine. `publisher` and `model` name it for LM Studio, and are empty elsewhere."""

    path: Path
    publisher: str = ""
    model: str = ""

    def __str__(self) -> str:
        return f"lmstudio://{self.publisher}/{self.model}" if self.model else str(self.path)


@dataclass(frozen=True)
class HubPlace:
    """A model repository of the Hugging Face hub, or of a server that speaks its protocol."""

    repo: str

    def __str__(self) -> str:
        return f"hf://{self.repo}"


Destination = FolderPlace | HubPlace


@dataclass(frozen=True)
class Publication:
    """What goes where. `target` is the name of a target, or "production" for what the release shows.

    `link` allows hard links in a folder. `override` is the reason why a target is published that misses its
    requirements. `license`, `base_model` and `datasets` are what the card says where the base says nothing.
    """

    name: str
    target: str
    to: Destination
    private: bool = True
    link: bool = False
    override: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()


def destination(text: str, folder: Path) -> Destination | str:
    """The place that `text` names, or what is wrong with it. A path is relative to `folder`."""
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return FolderPlace(folder / Path(text).expanduser())
    if scheme not in SCHEMES:
        close = nearest(scheme, SCHEMES)
        hint = f"did you mean {close}://?" if close else f"possible: {listed(SCHEMES)}, or a folder"
        return f"{quoted(scheme)} is not a kind of place; {hint}"
    if not is_repository(rest):
        example = {"hf": "hf://OWNER/NAME", "lmstudio": "lmstudio://PUBLISHER/NAME"}[scheme]
        return f"{quoted(rest)} is not a name with an owner; write {example}"
    if scheme == "hf":
        return HubPlace(rest)
    publisher, _, model = rest.partition("/")
    return FolderPlace(lm_studio_models() / publisher / model, publisher, model)


def is_repository(text: str) -> bool:
    """Whether a text is OWNER/NAME as model hubs allow it."""
    fits = re.fullmatch(f"{_PART}/{_PART}", text) is not None and len(text) <= _LONGEST
    return fits and "--" not in text and ".." not in text and not text.endswith(".git")


def lm_studio_models() -> Path:
    """Where LM Studio looks for models, unless its settings say otherwise."""
    return Path("~/.lmstudio/models").expanduser()
