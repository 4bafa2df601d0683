"""The benchmark's inputs are what mlx-lm loads, the same every time, and never half there."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import inputs


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["tiny_dense", "tiny_moe"])
def test_mlx_lm_loads_model_and_adapter(tmp_path: Path, name: str) -> None:
    from mlx_lm.utils import load_adapters, load_model

    model_folder, adapter, _ = inputs.make(tmp_path, name, blocks=2)
    model, config = load_model(model_folder, lazy=True)
    assert config["num_hidden_layers"] == 2
    load_adapters(model, str(adapter))
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, 512)


def test_same_seed_same_bytes_and_shards_change_nothing(tmp_path: Path) -> None:
    shape = inputs.SHAPES["tiny_dense"]
    one, two = (inputs.make_model(tmp_path / name, shape, seed=5) for name in ("one", "two"))
    first, second = (mx.load(str(folder / "model.safetensors")) for folder in (one, two))
    assert all(mx.array_equal(first[name], second[name]) for name in first)
    sharded = inputs.make_model(tmp_path / "sharded", shape, seed=5, shard_bytes=1_000_000)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    third = {name: array for file in files for name, array in mx.load(str(file)).items()}
    assert third.keys() == first.keys()
    assert all(mx.array_equal(first[name], third[name]) for name in first)


def test_what_is_there_is_left_and_what_is_half_there_is_made_again(tmp_path: Path) -> None:
    folders = inputs.make(tmp_path, "tiny_moe")
    before = [digests(folder) for folder in folders]
    stamps = [file.stat().st_mtime_ns for folder in folders for file in folder.iterdir()]
    (tmp_path / "tiny_moe_2.part").mkdir()
    (tmp_path / "tiny_moe_2.part" / "model.safetensors").write_bytes(b"half")
    assert inputs.make(tmp_path, "tiny_moe") == folders
    assert [file.stat().st_mtime_ns for folder in folders for file in folder.iterdir()] == stamps
    assert [digests(folder) for folder in folders] == before
    inputs.make(tmp_path, "tiny_moe", blocks=2)
    assert not list(tmp_path.glob("*.part"))
