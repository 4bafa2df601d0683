"""Bases from the Hugging Face cache and PEFT adapters, through real runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from tests.build.test_one_pass import built
from tests.conftest import Sandbox
from tests.reference import tensors
from tests.tiny import BLOCKS, DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, base: Path) -> None:
    """huggingface_hub's layout: blobs, and a snapshot of links to them."""
    repo = cache / "models--org--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in base.iterdir():
        shutil.move(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)


def test_a_repository_that_was_fetched_once_builds_offline(sandbox: Make) -> None:
    text = DECLARATION.replace('path = "base"', 'hf = "org/tiny"\nrevision = "main"')
    box = sandbox(text)
    cached(box.root / "hub", make_base(box.root / "base"))
    make_adapter(box.root / "adapter")
    offline = {"HF_HUB_CACHE": str(box.root / "hub"), "HF_HUB_OFFLINE": "1"}
    assert built(box.doit("model:m_5bit", env=offline)) == {"m_5bit": BLOCKS}
    assert built(box.doit("model:m_5bit", env=offline)) == {}
    box.edit('revision = "main"', f'revision = "{COMMIT}"')
    assert built(box.doit("model:m_5bit", env=offline)) == {}  # the same commit under another name


def test_a_peft_adapter_equals_the_same_adapter_in_mlx_layout(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    folder = make_adapter(box.root / "adapter")
    assert built(box.doit("model:m_f16")) == {"m_f16": BLOCKS}
    before = tensors(box.view("m_f16"))
    stored = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(stored, dict)
    peft = {
        f"base_model.model.{name.removesuffix('.lora_a').removesuffix('.lora_b')}"
        f".lora_{'A' if name.endswith('a') else 'B'}.weight": mx.contiguous(array.T)
        for name, array in stored.items()
    }
    for file in folder.iterdir():
        file.unlink()
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), peft)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"})
    )
    assert built(box.doit("model:m_f16")) == {"m_f16": 2}  # only the adapted blocks
    after = tensors(box.view("m_f16"))
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickles_are_refused_on_the_command_line(sandbox: Make, kind: str) -> None:
    box = sandbox(DECLARATION)
    base, adapter = make_base(box.root / "base"), make_adapter(box.root / "adapter")
    folder = base if kind.startswith("pytorch") else adapter
    for file in folder.glob("*.safetensors"):
        file.rename(folder / kind)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    ran = box.doit("model:m_5bit")
    assert ran.code != 0
    assert f"holds {kind}" in ran.text
    assert "Traceback" not in ran.text
