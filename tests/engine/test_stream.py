"""Memory is a block, not a model: it does not grow while a stream walks through sixty of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from builder.engine import stream as streams
from builder.engine.block import Block
from builder.engine.inspect import inspect
from builder.engine.kernels import cpu as kernels
from builder.engine.loading import load_base
from builder.engine.stream import Request, Stream
from builder.errors import EngineError
from builder.keys import Key
from builder.plan.planning import make_plan
from builder.plan.quantization import resolve
from builder.plan.types import Action, Sources, TargetPlan
from builder.project import peaks
from builder.spec.types import Adapter, Base, Model, PathSource, Quantization, Spec, Variant
from builder.weights import shards
from builder.weights.structure import Parameter, TensorSpec
from tests.architectures import checkpoint, dense, moe
from tests.comparison import lora
from tests.conftest import fresh_python
from tests.plan.test_planning import ADAPTER, BASE

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
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
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
    seen = json.loads(fresh_python(WALK, str(base), str(adapter), how))
    early, late = max(seen[:10]), max(seen[10:])
    print(f"resident after 10 blocks {early / 1e6:.0f} MB, at most {late / 1e6:.0f} MB after {len(seen)}")
    assert late - early < 3 * BLOCK


@pytest.mark.skipif(not kernels.available("bfloat16"), reason="no compiled kernels")
def test_codes_lie_as_in_their_files(tmp_path: Path) -> None:
    """So the disk takes them from there. What the kernels make is the same wherever it lies."""
    one = dense("llama", hidden_size=512, intermediate_size=2560, num_hidden_layers=1, head_dim=128)
    base = checkpoint(tmp_path / "base", one)
    structure = inspect(base)
    variants = [Variant(f"{bits}bit", quantization=Quantization(bits, 64)) for bits in (4, 5)]
    requests = [Request(v, structure.default_dtype, resolve(structure, v)[0]) for v in variants]
    with mock.patch.object(streams, "COMPILED_FROM", 0):
        stream = Stream(*load_base(base), requests)
    names, block = [v.name for v in variants], "model.layers.0"
    plain = stream.take(block, names, "test")
    specs = {v: [TensorSpec(n, t.dtype, t.shape) for n, t in shard.items()] for v, shard in plain.items()}
    places = {variant: shards.offsets(found) for variant, found in specs.items()}
    placed = stream.take(block, names, "test", places)
    large = 0
    for variant, shard in placed.items():
        assert shards.encode(shard) == shards.encode(plain[variant])
        for name, tensor in shard.items():
            if tensor.dtype == "U32" and tensor.nbytes >= 1 << 19:
                address = np.frombuffer(tensor.data, np.uint8).ctypes.data
                assert (address - places[variant][name]) % 4096 == 0
                large += 1
    assert large >= 6


def test_reading_ahead_needs_room_in_the_budget() -> None:
    action = Action(Key("k1"), "a", "f", (), 10)
    actions = [action, replace(action, key=Key("k2"), block="b")]
    source = {"a": 1000, "b": 4000}
    peak = peaks.block_peaks(actions, source)["a"]
    assert peaks.reads_ahead(actions, source, None) == {"a": 4000}
    assert peaks.reads_ahead(actions, source, peak + 4000) == {"a": 4000}
    assert peaks.reads_ahead(actions, source, peak + 3999) == {}
    assert peaks.peak_memory(actions, source) == max(peak + 4000, peaks.block_peaks(actions, source)["b"])


def test_what_is_made_of_blocks_may_be_in_memory_instead_of_their_weights() -> None:
    def of(size: int) -> list[Action]:
        return [Action(Key(f"{size}{block}"), block, "f", (), size) for block in "abc"]

    large = 1 << 30
    source = dict.fromkeys("abc", large)
    everything, nothing = frozenset("abc"), frozenset[str]()
    assert peaks.at_once(of(large), source, None) == (everything, nothing)  # whatever the budget
    assert peaks.at_once(of(large), source, 1) == (everything, nothing)
    four = [replace(action, key=Key(f"{n}{action.key}")) for n in range(4) for action in of(large * 3 // 8)]
    assert peaks.at_once(four, source, None) == (everything, nothing)
    least = max(peaks.block_peaks(four, source).values())
    needed = peaks.RESIDENT + peaks.WINDOWS + 3 * large
    assert least < needed  # so without room for the next block there is none for all results
    assert peaks.at_once(four, source, least) == (nothing, nothing)
    assert needed <= peaks.peak_memory(four, source)  # what `doit plan` says


def test_a_block_waits_for_what_is_written_where_files_begin_others_before() -> None:
    large = 1 << 30
    source = dict.fromkeys("abc", large)
    four = [Action(Key(f"{n}{b}"), b, "f", (), large * 3 // 8) for n in range(4) for b in "abc"]
    opened = {"a": {"a"}, "c": {"b", "c"}, "b": {"b"}}  # in the files a part of b lies before c
    everything = frozenset("abc")
    found = peaks.at_once(four, source, None, 2 * large, opened)
    assert found == (everything, frozenset("c"))  # or what is made of a, b and c would be in memory
    one = four[:3]  # less is made
    assert peaks.at_once(one, source, None, 2 * large, opened) == (everything, frozenset())
    assert peaks.at_once(four, source, None, large, opened) == (everything, frozenset("c"))
    whole = dict.fromkeys("abc", frozenset("abc"))
    assert peaks.at_once(four, source, None, large, whole) == (frozenset(), frozenset())


def test_the_delta_of_adapted_experts_is_counted() -> None:
    stack = Parameter(TensorSpec("layers.1.experts.up.weight", "BF16", (8, 32, 64)))
    structure = replace(BASE.structure, parameters=(*BASE.structure.parameters, stack))
    facts = replace(ADAPTER, paths=frozenset({"layers.1.experts.up", "layers.1.down_proj"}))
    spec = Spec(
        Path("/project/artifacts.toml"),
        Path("/project/store"),
        bases={"b": Base("b", PathSource(Path("/base")))},
        adapters={"a": Adapter("a", "b", Path("/adapter"))},
        variants={"v": Variant("v", quantization=Quantization(4, 64))},
        models={"m": Model("m", "b", "a", ("v",))},
    )
    plan = make_plan(spec, Sources({"b": replace(BASE, structure=structure)}, {"a": facts})).targets["m_v"]
    assert isinstance(plan, TargetPlan)
    assert peaks.deltas(plan) == {"layers.1": 4 * 8 * 32 * 64}
    plain = peaks.block_peaks(plan.actions, structure.block_nbytes)
    counted = peaks.block_peaks(plan.actions, structure.block_nbytes, peaks.deltas(plan))
    assert counted == {**plain, "layers.1": plain["layers.1"] + 4 * 8 * 32 * 64}


@pytest.mark.parametrize(
    "says",
    [
        "[metal::malloc] Attempting to allocate 9663676416 bytes which is greater than the maximum allowed.",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallback)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
    ],
)
def test_too_little_memory_on_a_gpu_is_one_line(says: str, tmp_path: Path) -> None:
    """What mlx raises there; on a CPU its allocator does not come back from a refusal of the system."""
    base = checkpoint(tmp_path / "base", dense("qwen3"))
    stream = Stream(*load_base(base), [Request(Variant("own"), None, {})])
    with (
        mock.patch.object(Block, "shards", side_effect=RuntimeError(says)),
        pytest.raises(EngineError) as caught,
    ):
        stream.take("model.norm", ["own"], "m_own")
    assert caught.value.message == (
        f'm_own: memory does not suffice for block "model.norm" ({says.rstrip(".")}).'
    )
    with (
        mock.patch.object(Block, "shards", side_effect=RuntimeError("[matmul] shapes")),
        pytest.raises(RuntimeError, match="matmul"),
    ):
        stream.take("model.norm", ["own"], "m_own")
