"""Snapshots in the cache of the Hugging Face client: whole or not, where the client says that they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from builder.sources import hub
from tests.conftest import fresh_python

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json")
SERIES = tuple(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository org/tiny in a cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--tiny"
    (folder / "refs" / "pr").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "pr" / "1").write_text(f"{COMMIT}\n")
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder


def fill(repository: Path, *names: str) -> Path:
    snapshot = repository / "snapshots" / COMMIT
    for name in names:
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text("{}")
    return snapshot


def index(snapshot: Path, *shards: object) -> None:
    weight_map = {str(number): shard for number, shard in enumerate(shards)}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("revision", ["main", "pr/1", COMMIT])
def test_a_whole_snapshot_is_found_by_every_name_of_it(repository: Path, revision: str) -> None:
    folder = fill(repository, *SMALL, "model.safetensors")
    assert hub.snapshot("org/tiny", revision) == folder


@pytest.mark.parametrize("revision", ["v2", "..", ".", "", "../refs/main", "../../models--org--tiny"])
def test_other_revisions_are_not_there(repository: Path, revision: str) -> None:
    fill(repository, *SMALL, "model.safetensors")
    assert hub.snapshot("org/tiny", revision) is None


@pytest.mark.parametrize(
    ("present", "lacks"),
    [
        (SMALL, ["model*.safetensors"]),
        (("model.safetensors", "tokenizer.json"), ["config.json"]),
        (("config.json", "model.safetensors"), ["the tokenizer"]),
        (("config.json", "model.safetensors", "tokenizer_config.json"), ["the tokenizer"]),
        (("config.json", "model.safetensors", "spiece.model"), []),
        (("config.json", "model.safetensors", "qwen.tiktoken"), []),
        ((*SMALL, *SERIES[:1]), [*SERIES[1:]]),
        ((*SMALL, *SERIES), []),
        ((), ["config.json", "model*.safetensors", "the tokenizer"]),
    ],
)
def test_what_a_snapshot_lacks_without_a_list(
    repository: Path, present: tuple[str, ...], lacks: list[str]
) -> None:
    assert list(hub.missing(fill(repository, *present))) == lacks


def test_an_index_names_the_shards(repository: Path) -> None:
    folder = fill(repository, *SMALL, "model-a.safetensors")
    index(folder, "model-a.safetensors", "model-b.safetensors")
    assert list(hub.missing(folder)) == ["model-b.safetensors"]
    index(folder, "model-a.safetensors", 7, None)  # said when the base is read
    assert list(hub.missing(folder)) == []


def test_a_link_to_an_unfinished_download_is_missing(repository: Path) -> None:
    folder = fill(repository, *SMALL)
    (folder / "model.safetensors").symlink_to(repository / "blobs" / "abc")
    assert list(hub.missing(folder)) == ["model*.safetensors"]


def test_the_clients_list_decides(repository: Path) -> None:
    """Written by the client's own function, so that a new format of it is noticed here."""
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    templates = "additional_chat_templates/tools.jinja"
    names = (
        "config.json",
        "model.safetensors",
        "generation_config.json",
        templates,
        "pytorch_model.bin",
        "a.md",
    )
    entry = TreeCacheEntry(size=2, blob_id="x", lfs_sha256=None, lfs_size=None, xet_hash=None)
    write_tree_cache(str(repository), COMMIT, dict.fromkeys(names, entry))
    folder = fill(repository, "config.json", "model.safetensors")
    assert set(hub.missing(folder)) == {"generation_config.json", templates}
    fill(repository, "generation_config.json", templates)
    assert hub.snapshot("org/tiny", "main") == folder  # a repository without a tokenizer


@pytest.mark.parametrize("text", ["", "[]", '{"files": 7}', '{"files": {}}', "[" * 100_000])
def test_a_list_that_cannot_be_read_decides_nothing(repository: Path, text: str) -> None:
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_text(text)
    assert list(hub.missing(fill(repository, *SMALL))) == ["model*.safetensors"]


def test_offline_a_part_is_not_a_download(repository: Path) -> None:
    fill(repository, *SMALL)
    with pytest.raises(hub.Undownloaded, match=r"without model\*.safetensors"):
        hub.download("org/tiny", "main", "base.b")


def test_what_is_downloaded_is_what_mlx_lm_downloads() -> None:
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    assert hub.patterns() == tuple(DEFAULT_ALLOW_PATTERNS)
    code = "import sys; from builder.sources.hub import patterns; patterns(); print('mlx_lm' in sys.modules)"
    assert fresh_python(code).strip() == "False"


@pytest.mark.parametrize(
    ("variable", "inside"),
    [
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HF_HOME", "hub"),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
    ],
)
def test_the_cache_is_where_the_client_has_it(tmp_path: Path, variable: str, inside: str) -> None:
    import os
    import subprocess

    names = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = "from builder.sources.hub import cache; print(cache())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, variable: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path / inside
