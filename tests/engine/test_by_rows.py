"""A weight that is fused and quantized as its rows come in becomes what it becomes as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from builder.engine import stream as streams
from builder.engine.finite import NotFinite
from builder.engine.inspect import inspect
from builder.engine.kernels import cpu as kernels
from builder.engine.loading import load_base
from builder.engine.stream import Request, Stream
from builder.engine.tracing import Trace
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from builder.weights import shards
from builder.weights.pieces import Rows
from builder.weights.structure import Structure
from tests.architectures import Architecture, checkpoint, dense, moe
from tests.comparison import loaded, lora, read_into_place

pytestmark = pytest.mark.skipif(not kernels.available("bfloat16"), reason="no compiled kernels")

FOUR = tuple(Variant(f"{bits}bit", quantization=Quantization(bits, 64)) for bits in (4, 5, 6, 8))
NAMES = [variant.name for variant in FOUR]
DENSE = dense("llama", hidden_size=256, intermediate_size=704, num_hidden_layers=2, head_dim=64)
EXPERTS = moe("qwen3_moe", original=True, hidden_size=128, moe_intermediate_size=192, num_hidden_layers=2)
TIED = dense("qwen3", hidden_size=128, num_hidden_layers=2, tie_word_embeddings=True)


def opened(
    base: Path, structure: Structure, adapter: Path | None, variants: tuple[Variant, ...] = FOUR
) -> Stream:
    requests = [Request(v, v.dtype or structure.default_dtype, resolve(structure, v)[0]) for v in variants]
    trace = Trace()
    model, config = load_base(base, around=trace.around)
    change = loaded(adapter, structure, base) if adapter else None
    with mock.patch.object(streams, "COMPILED_FROM", 0):
        return Stream(model, config, requests, change, survival=True, trace=trace)


@pytest.mark.parametrize("architecture", [DENSE, EXPERTS, TIED], ids=["dense", "experts", "tied"])
@pytest.mark.parametrize("adapted", [True, False])
def test_bytes_and_survival(architecture: Architecture, adapted: bool, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    structure = inspect(base)
    adapter = lora(base, structure, tmp_path / "adapter") if adapted else None
    whole, arriving = (opened(base, structure, adapter) for _ in range(2))
    read_into_place(whole, structure, base)
    given = read_into_place(arriving, structure, base, NAMES)
    quantized = set.intersection(*(set(resolve(structure, variant)[0]) for variant in FOUR))
    assert given == {f"{path}.weight" for path in quantized}
    for block in structure.blocks:
        expected, found = (each.take(block, NAMES, "test") for each in (whole, arriving))
        for name in NAMES:
            assert found[name].keys() == expected[name].keys()
            assert shards.encode(found[name]) == shards.encode(dict(expected[name]))
            assert arriving.survival(block, name) == whole.survival(block, name)
            measured = [path for path, *_ in json.loads(whole.survival(block, name) or "[]")]
            assert set(measured) == {path for path in quantized if f"{path}.weight" in expected[name]}


def test_some_of_the_variants(tmp_path: Path) -> None:
    """Somebody else has made the others meanwhile."""
    base = checkpoint(tmp_path / "base", DENSE)
    structure = inspect(base)
    whole, arriving = (opened(base, structure, None) for _ in range(2))
    read_into_place(arriving, structure, base, NAMES)
    block = structure.blocks[1]
    found = arriving.take(block, NAMES[1:2], "test")
    expected = whole.take(block, NAMES[1:2], "test")
    assert found.keys() == {NAMES[1]}
    assert shards.encode(found[NAMES[1]]) == shards.encode(dict(expected[NAMES[1]]))


def test_what_is_not_quantized_by_all_is_not_given_by_rows(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", DENSE)
    structure = inspect(base)
    for odd in (Variant("f16", dtype="float16"), replace(FOUR[0], name="cast", dtype="float16")):
        stream = opened(base, structure, None, (*FOUR, odd))
        assert read_into_place(stream, structure, base, [*NAMES, odd.name]) == set()
    stream = opened(base, structure, None)
    block = structure.blocks[1]
    names = {parameter.tensor.name: parameter.tensor for parameter in structure.by_block[block]}
    cut = {name: tensor.nbytes // tensor.shape[0] // 2 for name, tensor in names.items()}
    assert stream.by_rows(block, cut, NAMES, "test") == {}  # the files cut their rows


@pytest.mark.parametrize("value", [0x7FC0, 0x7F80, 0xFF80])
def test_a_number_that_is_not_finite_is_named(value: int, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", DENSE)
    structure = inspect(base)
    stream = opened(base, structure, None)
    block = structure.blocks[1]
    units = {p.tensor.name: p.tensor.nbytes // p.tensor.shape[0] for p in structure.by_block[block]}
    name, row = next(iter(stream.by_rows(block, units, NAMES, "test").items()))
    data = np.zeros(3 * row // 2, np.uint16)
    data[row] = value
    with pytest.raises(NotFinite, match=name):
        stream.take_rows([Rows(block, name, 0, data.view(np.uint8).data)])
