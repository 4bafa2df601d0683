"""Where a base's files are, which of them matter, and the digest of its weights. No mlx, no network.

A base directory is what mlx_lm.utils.load_model reads: config.json and model*.safetensors, plus the
files that are copied into every target as they are (tokenizer, chat template, generation config). Hidden
files count nowhere: macOS leaves `._tokenizer.json` and the like on exFAT and network disks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder.errors import SourceInvalid, SourceMissing
from builder.keys import Digest, make_key
from builder.sources import hub
from builder.spec.types import Base, HfSource, PathSource
from builder.store.disk.names import is_hidden

INDEX = "model.safetensors.index.json"
_COPIED_NAMES = frozenset({"tokenizer.model", "tiktoken.model", "merges.txt", "vocab.txt"})
_COPIED_SUFFIXES = (".json", ".jinja", ".tiktoken", ".py")
_NOT_COPIED = frozenset({"config.json", INDEX, "artifact.toml", "hf_quant_config.json"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class BaseFiles:
    """A base on disk. `weights` includes config.json: whatever decides the tensors."""

    directory: Path
    weights: tuple[Path, ...]
    copied: tuple[Path, ...]


def locate(base: Base) -> Path | None:
    """The directory of a `path` or `hf` base, or None if a repository is not in the local cache yet.

    Raises SourceMissing for a path that does not exist.
    """
    source = base.source
    if isinstance(source, PathSource):
        if not source.path.is_dir():
            raise SourceMissing(table=f"base.{base.name}", path=source.path)
        return source.path
    if isinstance(source, HfSource):
        return hub.snapshot(source.repo, source.revision)
    raise TypeError(f"a GGUF base is located after its import: {base.name}")


def list_files(base: Base, directory: Path) -> BaseFiles:
    """The files that matter, checked against each other.

    Raises SourceInvalid: no config.json, no safetensors, pickles only, a shard that the index names but
    the folder lacks, a stale shard that mlx_lm would load although the index does not name it.
    """
    table = f"base.{base.name}"
    names = sorted(e.name for e in directory.iterdir() if e.is_file() and not is_hidden(e.name))
    if "config.json" not in names:
        raise SourceInvalid(table=table, path=directory, what="holds no config.json")
    shards = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    if not shards:
        pickled = [name for name in names if name.endswith(_PICKLES)]
        what = f"holds {pickled[0]} but no model*.safetensors" if pickled else "holds no model*.safetensors"
        hint = "Pickles run code when loaded: convert them to safetensors first." if pickled else ""
        raise SourceInvalid(table=table, path=directory, what=what, hint=hint)
    if INDEX in names:
        _check_index(table, directory, set(shards))
    code = [name for name in names if name.endswith(".py")] if base.trust_remote_code else []
    weights = ["config.json", *(n for n in names if n == "hf_quant_config.json"), *code, *shards]
    copied = [
        name
        for name in names
        if name not in _NOT_COPIED and (name in _COPIED_NAMES or name.endswith(_COPIED_SUFFIXES))
    ]
    return BaseFiles(
        directory, tuple(directory / name for name in weights), tuple(directory / name for name in copied)
    )


def _check_index(table: str, directory: Path, shards: set[str]) -> None:
    path = directory / INDEX
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceInvalid(table=table, path=path, what=f"is not an index of shards ({error})") from error
    if missing := sorted(named - shards):
        raise SourceInvalid(table=table, path=directory, what=f"lacks {missing[0]}, which {INDEX} names")
    if stale := sorted(shards - named):
        raise SourceInvalid(
            table=table,
            path=directory,
            what=f"holds {stale[0]}, which {INDEX} does not name",
            hint="mlx-lm would load it too. Remove this old shard.",
        )


def weights_digest(files: list[tuple[str, Digest]], *, dequantize: bool) -> Digest:
    """The identity of a base's weights: names and digests of config.json and the shards."""
    return Digest(make_key("base/1", sorted(files), dequantize))


def digest_all(
    paths: tuple[Path, ...], digest_of: Callable[[Path], Digest | None]
) -> list[tuple[str, Digest]] | None:
    """(name, digest) of each path, or None as soon as `digest_of` does not know one."""
    found = []
    for path in paths:
        digest = digest_of(path)
        if digest is None:
            return None
        found.append((path.name, digest))
    return found
