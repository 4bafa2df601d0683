"""Leaves an expert out of a tiny mixture of experts, in our way and by hand, and compares every tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from builder.engine.expert_places import build, find, with_setting
from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.engine.routing import measure
from builder.engine.stream import Request, Stream, cut
from builder.errors import BuildError
from builder.keys import Key
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from builder.weights import shards
from builder.weights.experts import Pruned
from tests.architectures import Architecture, checkpoint
from tests.engine.rounding.models import runnable

KEPT = (0, 2, 3)  # of 4 experts
COUNT = 4
FOUR = Variant("4bit", quantization=Quantization(4, 32), group_size=32)
# The names of everything that has a place for each expert, in the models of mlx-lm, as a person reads them.
_STACK = re.compile(r"(switch_mlp|switch_glu|experts)\.(gate_proj|up_proj|down_proj|fc1|fc2)\.(weight|bias)$")
_ROUTER = re.compile(
    r"(gate|router|gate\.gate|gate\.wg|gate\.proj|gate\.gate_proj|router\.gate|router\.layer|router\.classifier)\.(weight|bias)$"
    r"|(e_score_correction_bias|expert_bias|router_bias|per_expert_scale)$"
)


@dataclass(frozen=True)
class Outcome:
    """What came of one architecture. `setting`: where config.json has the number. `places`: how many tensors
    lose a place. `measured`: "yes", or why this machine cannot. `refused`: why nothing can be left out.
    """

    name: str
    setting: str = ""
    places: int = 0
    measured: str = ""
    refused: str = ""


def outcome(architecture: Architecture) -> Outcome:
    """Raises AssertionError where a tensor differs from what was done by hand."""
    with TemporaryDirectory() as scratch:
        base = checkpoint(Path(scratch) / "base", runnable(architecture))
        model, config = load_base(base)
        structure = inspect(base)
        if structure.quantized:
            return Outcome(architecture.name, refused="its weights are quantized already")
        try:
            places = find(model, config)
        except BuildError as error:
            return Outcome(architecture.name, refused=error.message)
        kept = dict.fromkeys(places.stacks, KEPT)
        pruned = Pruned(places.setting, places.count, kept, places.axes, structure, Key("k"))
        quantization, _ = resolve(pruned.structure, FOUR)
        stream = Stream(model, config, [Request(FOUR, None, quantization, pruned)])
        made = Path(scratch) / "made"
        made.mkdir()
        (made / "config.json").write_bytes(stream.config(FOUR.name))
        for number, block in enumerate(structure.blocks):
            shard = stream.take(block, [FOUR.name], "tiny")[FOUR.name]
            (made / f"model-{number:05d}.safetensors").write_bytes(b"".join(shards.encode(shard)))
            stream.drop(block)
        _assert_same(made, base, places.setting, architecture)
        return Outcome(architecture.name, ".".join(places.setting), len(places.axes), _measured(base))


def _assert_same(made: Path, base: Path, setting: tuple[str, ...], architecture: Architecture) -> None:
    """mlx_lm loads what was made, and it is what is made by hand with mlx_lm."""
    from mlx_lm.utils import load_model, quantize_model

    ours, _ = load_model(made, lazy=True)
    whole, config = load_model(base, lazy=True)
    by_hand = with_setting(config, setting, len(KEPT))
    theirs = build(by_hand)
    theirs.load_weights([(name, _by_hand(name, array)) for name, array in tree_flatten(whole.parameters())])
    theirs, by_hand = quantize_model(theirs, by_hand, 32, 4)
    found, expected = dict(tree_flatten(ours.parameters())), dict(tree_flatten(theirs.parameters()))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if architecture.changed_again and name.startswith("lm_head"):
            continue  # mlx-lm normalises this head again when it loads what was made
        same = found[name].dtype == array.dtype and mx.array_equal(found[name], array)
        assert same, name
    wanted: Any = json.loads((made / "config.json").read_text())
    for name in setting:
        wanted = wanted[name]
    assert wanted == len(KEPT)


def _by_hand(name: str, array: mx.array) -> mx.array:
    if not (_STACK.search(name) or _ROUTER.search(name)) or array.shape[0] not in (COUNT, COUNT + 2):
        return array
    return array[mx.array([*KEPT, *range(COUNT, array.shape[0])])]


def _measured(base: Path) -> str:
    """Whether its experts can be measured here."""
    model, config = load_base(base)
    tokens = mx.random.randint(2, 100, (5, 24), key=mx.random.key(0))
    places, kind = find(model, config), str(config["model_type"])
    try:
        found = measure(model, cut(model, None, compiled=False), places, tokens, kind, lambda *_: None)
    except BuildError as error:
        return error.message
    sums: Mapping[str, Any] = found.layers
    assert all(sum(each.chosen) <= tokens.size * found.top_k for each in sums.values())
    assert all(any(value > 0 for value in each.weighted) for each in sums.values())
    return "yes"
