"""Finds the files of a base, chooses those that matter, and makes the digest of the weights.

Uses neither mlx nor the network. A base directory holds what mlx_lm.utils.load_model reads: config.json and
model*.safetensors. It also holds the files that every target gets as they are: tokenizer, chat template and
generation config.
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

INDEX = "model.safetensors.index.json"
_COPIED_NAMES = frozenset({"tokenizer.model", "tiktoken.model", "merges.txt", "vocab.txt"})
_COPIED_SUFFIXES = (".json", ".jinja", ".tiktoken", ".py")
_NOT_COPIED = frozenset({"config.json", INDEX, "artifact.toml", "hf_quant_config.json"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class BaseFiles:
    """A base on disk. `weights` are all files that decide the tensors, config.json among them.

    `copied` are the files that every target gets as they are.
    """

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

    Raises SourceInvalid if config.json is missing, if safetensors are missing, if the folder holds only
    pickles, if it lacks a shard that the index names, and if it holds a stale shard. mlx-lm would load a
    stale shard although the index does not name it.
    """
    table = f"base.{base.name}"
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
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
    """The identity of a base's weights, from (name, digest) of each file that decides the tensors."""
    return Digest(make_key("base/1", sorted(files), dequantize))


def digest_all(
    paths: tuple[Path, ...], digest_of: Callable[[Path], Digest | None]
) -> list[tuple[str, Digest]] | None:
    """(name, digest) of each path. None if `digest_of` does not know the digest of some path."""
    found = []
    for path in paths:
        digest = digest_of(path)
        if digest is None:
            return None
        found.append((path.name, digest))
    return found
