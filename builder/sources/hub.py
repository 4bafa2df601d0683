"""The cache of the Hugging Face client: finds what has been downloaded, and downloads what has not."""

from __future__ import annotations

import os
from pathlib import Path

from builder.errors import SourceError


class Undownloaded(SourceError):
    """[{table}] {repo} at revision {revision} could not be downloaded: {what}"""

    hint = "Download it once while you are online. After that, builds work offline."


def cache() -> Path:
    """The folder of the client's cache, by its documented variables HF_HOME and HF_HUB_CACHE."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", str(home / "hub"))).expanduser()


def snapshot(repo: str, revision: str) -> Path | None:
    """The snapshot folder of a repository in the cache, by its documented layout. None if it is not there."""
    folder = cache() / ("models--" + repo.replace("/", "--"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    found = folder / "snapshots" / commit
    return found if (found / "config.json").exists() else None


def download(repo: str, revision: str, table: str) -> None:
    """Downloads into the cache everything in a repository that mlx-lm loads. Raises Undownloaded.

    `table` is the declaration named in errors.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.py", "tokenizer.model", "*.tiktoken", "*.txt"]
    try:
        snapshot_download(repo, revision=revision, allow_patterns=wanted)
    except Exception as error:  # the client raises many kinds of errors, and all mean "not downloaded"
        what = " ".join(str(error).split())[:200]
        raise Undownloaded(table=table, repo=repo, revision=revision, what=what) from error
