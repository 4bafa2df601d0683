"""The cache of the Hugging Face client: finds what has been downloaded whole, and downloads what has not.

The client itself says where its cache is: `huggingface_hub.constants` reads the variables (HF_HOME,
HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, XDG_CACHE_HOME). It says what belongs to a snapshot too: a download
leaves a list of the files. Importing the constants takes 14 ms, so only a declaration with an `hf` base
pays for them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache as cached
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from builder.console.words import one_line
from builder.errors import SourceError
from builder.sources.contents import CONFIG, INDEX, is_shard, is_vocabulary, shards_of_series


class Undownloaded(SourceError):
    """[{table}] {repo} at revision {revision} could not be downloaded: {what}"""

    hint = "Download it once while you are online. After that, builds work offline."


def cache() -> Path:
    """The folder of the client's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: str, revision: str) -> Path | None:
    """The snapshot folder of a repository in the cache. None unless it has all that mlx-lm would download."""
    folder = _folder(repo, revision)
    return folder if folder is not None and not any(missing(folder)) else None


def main_commit(repository: Path) -> str | None:
    """The commit that `main` was when a repository in the cache was last looked at."""
    return _reference(repository, "main")


def missing(folder: Path) -> Iterator[str]:
    """What a snapshot folder lacks. A link to a file that is still being downloaded leads nowhere.

    The client's list of the repository's files decides, where a download left a list. Without a list, a
    snapshot must have config.json, every shard, and a vocabulary.
    """
    listed = _listed(folder)
    if listed is not None:
        yield from (name for name in _wanted(listed) if not (folder / name).is_file())
        return
    present = {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()
    if CONFIG not in present:
        yield CONFIG
    named = _shards_of_index(folder) if INDEX in present else shards_of_series(filter(is_shard, present))
    yield from sorted(name for name in named if name not in present)
    if not any(map(is_shard, present)) and not named:
        yield "model*.safetensors"
    if not any(map(is_vocabulary, present)):
        yield "the tokenizer"


def download(repo: str, revision: str, table: str) -> None:
    """Downloads into the cache everything in a repository that mlx-lm loads. Goes on where a download ended.

    `table` is the declaration named in errors. Raises Undownloaded.
    """
    from huggingface_hub import snapshot_download
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=DEFAULT_ALLOW_PATTERNS))
    except Exception as error:  # the client raises many kinds of errors, and all mean "not downloaded"
        raise Undownloaded(table=table, repo=repo, revision=revision, what=one_line(error)) from error
    if lacks := next(missing(folder), None):
        what = f"the cache holds a part of it only, without {lacks}, and the hub was not asked"
        raise Undownloaded(table=table, repo=repo, revision=revision, what=what)


def _folder(repo: str, revision: str) -> Path | None:
    """Where the client keeps a revision: by its branch or tag, else by its commit."""
    repository = cache() / ("models--" + repo.replace("/", "--"))
    commit = _reference(repository, revision) or revision
    folder = repository / "snapshots" / commit
    return folder if folder.parent.name == "snapshots" and commit != ".." and folder.is_dir() else None


def _reference(repository: Path, revision: str) -> str | None:
    if ".." in Path(revision).parts:
        return None
    try:
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _listed(folder: Path) -> list[str] | None:
    """The files of the repository at this commit, as the client wrote them down. None without such a list."""
    file = folder.parent.parent / "trees" / f"{folder.name}.json"
    files = _object(file).get("files")
    return [name for name in files if isinstance(name, str)] if isinstance(files, dict) and files else None


def _wanted(names: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns())]


@cached
def patterns() -> tuple[str, ...]:
    """mlx_lm.utils.DEFAULT_ALLOW_PATTERNS, which mlx-lm downloads by.

    Read from the text of the module where that is possible, since importing the module takes a second.
    """
    name = "DEFAULT_ALLOW_PATTERNS"
    try:
        spec = find_spec("mlx_lm")
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).with_name("utils.py").read_text(encoding="utf-8")
        start = text.index(f"\n{name} = [") + len(f"\n{name} = ")
        return tuple(ast.literal_eval(text[start : text.index("]", start) + 1]))
    except (AssertionError, OSError, ValueError, SyntaxError):
        from mlx_lm import utils

        return tuple(getattr(utils, name))


def _shards_of_index(folder: Path) -> set[str]:
    """The shards that an index names. What is wrong with an index is said when the base is read."""
    named = _object(folder / INDEX).get("weight_map")
    return {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()


def _object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
