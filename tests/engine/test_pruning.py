"""Experts are left out of blocks, of a model and of its adapter with the same result, to the last bit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from builder.engine.expert_places import NotPrunable, find
from builder.engine.inspect import inspect
from builder.engine.loading import LoadedAdapter, load_base, lora_layers
from builder.engine.pruning import prune, prune_adapter
from builder.engine.stream import Request, Stream
from builder.keys import Key
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from builder.weights.experts import Pruned
from builder.weights.shards import RawTensor
from tests.mixture import make_adapter, make_mixture

FOUR = Variant("4bit", quantization=Quantization(4, 32), group_size=32)
PLAIN = Variant("plain")


def adapter(folder: Path) -> LoadedAdapter:
    tensors = mx.load(str(make_adapter(folder) / "adapters.safetensors"))
    assert isinstance(tensors, dict)
    paths = {name.rpartition(".")[0] for name in tensors}
    return LoadedAdapter("tuned", "lora", tensors, dict.fromkeys(paths, 2.0))


def cut_out(base: Path) -> Pruned:
    model, config = load_base(base)
    places = find(model, config)
    kept = {"model.layers.0": (0, 1, 2, 4, 5, 7), "model.layers.1": (1, 2, 3, 4, 6, 7)}
    return Pruned(places.setting, places.count, kept, places.axes, inspect(base), Key("k"))


def shards(stream: Stream, variant: Variant, pruned: Pruned) -> dict[str, RawTensor]:
    found: dict[str, RawTensor] = {}
    for block in pruned.whole.blocks:
        found |= stream.take(block, [variant.name], "tiny")[variant.name]
        stream.drop(block)
    return found


@pytest.mark.parametrize("variant", [FOUR, PLAIN], ids=lambda each: each.name)
def test_cutting_commutes_with_fusing_and_rounding(tmp_path: Path, variant: Variant) -> None:
    """The experts of the adapter, the router's rows of it, and the codes, scales and biases."""
    base = make_mixture(tmp_path / "base")
    pruned, worn = cut_out(base), adapter(tmp_path / "adapter")
    quantization, _ = resolve(pruned.structure, variant)
    model, config = load_base(base)
    afterwards = Stream(model, config, [Request(variant, None, quantization, pruned)], worn)
    model, config = prune(*load_base(base), pruned)
    before = Stream(model, config, [Request(variant, None, quantization)], prune_adapter(worn, pruned))
    assert before.config(variant.name) == afterwards.config(variant.name)
    first, second = shards(before, variant, pruned), shards(afterwards, variant, pruned)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.shape == second[name].shape
        assert bytes(tensor.data) == bytes(second[name].data), name


def test_a_full_fine_tune_loses_the_same_experts(tmp_path: Path) -> None:
    base = make_mixture(tmp_path / "base")
    pruned, (model, _) = cut_out(base), load_base(base)
    tensors = {name: array for name, array in tree_flatten(model.parameters()) if "mlp" in name}
    left = prune_adapter(LoadedAdapter("full", "full", tensors, {}), pruned)
    assert left is not None
    shapes = {p.tensor.name: p.tensor.shape for p in pruned.structure.parameters}
    assert {name: tuple(array.shape) for name, array in left.tensors.items()} == {
        n: shapes[n] for n in tensors
    }
    router = left.tensors["model.layers.0.mlp.gate.weight"]
    whole = tensors["model.layers.0.mlp.gate.weight"]
    assert mx.array_equal(router, whole[mx.array(pruned.kept["model.layers.0"])])


def test_an_adapter_fits_the_model_without_the_experts(tmp_path: Path) -> None:
    base = make_mixture(tmp_path / "base")
    pruned = cut_out(base)
    model, _ = prune(*load_base(base), pruned)
    left = prune_adapter(adapter(tmp_path / "adapter"), pruned)
    assert left is not None
    assert len(lora_layers(model, left)) == 3


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    model, config = load_base(make_mixture(tmp_path / "base"))
    with pytest.raises(NotPrunable, match="it brings code of its own"):
        find(model, {**config, "model_file": "model.py"})
    with pytest.raises(NotPrunable, match=r"no setting of config.json says how many there are"):
        find(model, {name: value for name, value in config.items() if "experts" not in name})
