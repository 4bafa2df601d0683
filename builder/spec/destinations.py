"""Where a target can be published, as frozen values, and the texts that name these places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from builder.console.words import listed, nearest, quoted
from builder.spec.quantizers import Calibrated

SCHEMES = ("hf", "lmstudio", "oci", "ollama")
EXACT = "exact"
BLOCKWISE = (EXACT, "F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # types of a variant
# Mixtures of types, which llama.cpp's own library makes.
K_QUANTS = (
    *("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
GGUF_TYPES = (*BLOCKWISE, *K_QUANTS)
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


@dataclass(frozen=True)
class OciPlace:
    """A tag of a repository of an OCI registry: a host, perhaps with a port."""

    registry: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"oci://{self.registry}/{self.repository}:{self.tag}"

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, where registries speak HTTP without encryption."""
        host = self.registry.partition(":")[0]
        return host == "localhost" or host.startswith("127.")


@dataclass(frozen=True)
class OllamaPlace:
    """A model of Ollama on this machine: NAME or NAME:TAG, perhaps with an owner."""

    name: str

    def __str__(self) -> str:
        return f"ollama://{self.name}"


Destination = FolderPlace | HubPlace | OciPlace | OllamaPlace
_OLLAMA = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9][A-Za-z0-9._-]*)?"
_OCI = (
    r"([A-Za-z0-9.-]+(?::[0-9]+)?)/([a-z0-9]+(?:[._/-][a-z0-9]+)*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)


@dataclass(frozen=True)
class Benchmark:
    """A figure that counts for a task of a benchmark, which is a dataset of the hub."""

    suite: str
    figure: str
    dataset: str
    task: str


@dataclass(frozen=True)
class Publication:
    """What goes where. `gguf` are the types of GGUF files to send instead of the target's own files. "exact"
    is made of the target, other types of the unquantized target `source` of its model.

    `target` is the name of a target, or "production" for what the release shows. `calibrated`: what the
    importance matrix is made of that K-quants are quantized with, or None.

    `link` allows hard links in a folder. `override` is the reason why a target is published that misses its
    requirements. `license`, `base_model` and `datasets` are what the card says where the base says nothing.
    """

    name: str
    target: str
    to: Destination
    private: bool = True
    link: bool = False
    gguf: tuple[str, ...] = ()
    source: str | None = None
    calibrated: Calibrated | None = None
    override: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()


def destination(text: str, folder: Path) -> Destination | str:
    """The place that `text` names, or what is wrong with it. A path is relative to `folder`."""
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return FolderPlace(folder / Path(text).expanduser())
    if scheme not in SCHEMES:
        close = nearest(scheme, SCHEMES)
        hint = f"did you mean {close}://?" if close else f"possible: {listed(SCHEMES)}, or a folder"
        return f"{quoted(scheme)} is not a kind of place; {hint}"
    if scheme == "ollama":
        fits = re.fullmatch(_OLLAMA, rest)
        return OllamaPlace(rest) if fits else f"{quoted(rest)} is not a name; write ollama://NAME:TAG"
    if scheme == "oci":
        match = re.fullmatch(_OCI, rest)
        if match is None:
            return (
                f"{quoted(rest)} is not a repository; write oci://HOST/NAME:TAG, with small letters in NAME"
            )
        return OciPlace(match[1], match[2], match[3] or "latest")
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
