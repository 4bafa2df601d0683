"""Memory is a block, not a model: it does not grow while a stream walks through sixty of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builder.engine.inspect import inspect
from tests.architectures import checkpoint, dense, moe
from tests.comparison import lora
from tests.conftest import ROOT

LAYERS = 60
BLOCK = 10e6  # bytes in the base, roughly
DENSE = dense("llama", hidden_size=512, intermediate_size=2560, num_hidden_layers=LAYERS, head_dim=128)
# Sixteen tensors for each of the stacks: `sanitize` puts them together lazily.
EXPERTS = moe(
    "qwen3_moe",
    original=True,
    hidden_size=256,
    moe_intermediate_size=384,
    num_experts=16,
    num_hidden_layers=LAYERS,
)

WALK = """
import json, sys
from pathlib import Path
from unittest import mock
import mlx.core as mx
from builder.engine import stream as streams
from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.plan import resolve
from builder.spec import Quantization, Variant
from tests.comparison import loaded

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

base, adapter, compiled = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kernels"
variants = [
    Variant("4bit", quantization=Quantization(4, 64)),
    Variant("8bit", quantization=Quantization(8, 64)),
    Variant("f16", dtype="float16"),
]
structure = inspect(base)
requests = [
    streams.Request(v, v.dtype or structure.default_dtype, resolve(structure, v)[0]) for v in variants
]
with mock.patch.object(streams, "COMPILED_FROM", 0 if compiled else 1 << 62):
    stream = streams.Stream(*load_base(base), requests, loaded(adapter))
seen = []
for block in structure.blocks:
    stream.take(block, [v.name for v in variants], "test")
    stream.drop(block)
    seen.append(resident())
print(json.dumps(seen))
"""


@pytest.fixture(scope="module", params=[DENSE, EXPERTS], ids=lambda a: a.kind)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("large") / "base", request.param)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kernels", "mlx"])
def test_memory_does_not_grow_with_the_blocks(base: Path, how: str, tmp_path: Path) -> None:
    structure = inspect(base)
    assert structure.nbytes > LAYERS * BLOCK * 0.9
    adapter = lora(base, structure, tmp_path / "adapter")
    command = [sys.executable, "-c", WALK, str(base), str(adapter), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    early, late = max(seen[:10]), max(seen[10:])
    print(f"resident after 10 blocks {early / 1e6:.0f} MB, at most {late / 1e6:.0f} MB after {len(seen)}")
    assert late - early < 3 * BLOCK
