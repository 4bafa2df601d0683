"""What each rounded weight costs: the streamed gradient against one through the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from builder.engine.loading import load_base
from builder.engine.rounding import points, walk
from builder.engine.rounding import sensitivity as module
from builder.engine.rounding.points import Opened
from builder.engine.rounding.sensitivity import SEED, NotDifferentiable, Sensitivity
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import read_rounded
from builder.engine.stream import cut
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from tests.architectures import checkpoint
from tests.engine.rounding.models import BY_NAME, World, runnable, text

THREE = Variant("3bit", quantization=Quantization(3, 32))
TOKENS = text(6, 20)


def measured(
    name: str, folder: Path, counted: mx.array, calibrated: bool = True
) -> tuple[Sensitivity, World]:
    base = checkpoint(folder / "base", runnable(BY_NAME[name]))
    world = World(base, folder / "rounded", THREE)
    world.round(TOKENS)

    def opened() -> Opened:
        model, _ = load_base(base)
        return Opened(model, cut(model, None, compiled=False))

    files = {block: world.file(block) for block in world.structure.blocks} if calibrated else None
    how = resolve(world.structure, THREE)[0]
    return Sensitivity(opened, files, how, None, mx.array(TOKENS), counted, "t"), world


def whole(
    sensitivity: Sensitivity, world: World, counted: mx.array, exact: dict[str, mx.array]
) -> tuple[dict[str, float], float]:
    """The same by gradients of the whole model at once, and the divergence itself. `exact`: its weights."""
    model: Any = sensitivity.open().model
    stored = dict(tree_flatten(model.parameters()))
    moved: dict[str, mx.array] = {}
    for block in world.structure.blocks:
        if sensitivity.files is not None:
            for name, array in read_rounded(sensitivity.files[block], sensitivity.quantization).items():
                if name.rpartition(".")[0] in sensitivity.quantization and name.endswith(".weight"):
                    moved[name] = array - exact[name]
    if sensitivity.files is None:
        for path, how in sensitivity.quantization.items():
            given = exact[f"{path}.weight"]
            codes, *grid = mx.quantize(stored[f"{path}.weight"], group_size=how.group_size, bits=how.bits)
            grid = [array.astype(mx.float32) for array in grid]
            made = mx.dequantize(codes, *grid, group_size=how.group_size, bits=how.bits)
            moved[f"{path}.weight"] = made - given

    def logs(places: dict[str, mx.array], tokens: mx.array) -> mx.array:
        new = {name: exact[name] + places[name] * moved[name] for name in moved}
        model.update(tree_unflatten(list({**exact, **new}.items())))
        made = model(tokens).astype(mx.float32)
        return made - mx.logsumexp(made, -1, keepdims=True)

    found = dict.fromkeys(moved, 0.0)
    zero = {name: mx.array(0.0) for name in moved}
    for at in range(sensitivity.tokens.shape[0]):

        def drawn(places: Any, at: int = at) -> mx.array:
            some = logs(places, sensitivity.tokens[at : at + 1])
            at_first = [place for place, counts in enumerate(counted[at].tolist()) if counts]
            key = mx.random.key(SEED + at * some.shape[1] + at_first[0])  # drawn for places that count
            z = mx.zeros(some.shape)
            z[:, mx.array(at_first)] = mx.random.normal((1, len(at_first), some.shape[2]), key=key)
            roots = mx.stop_gradient(mx.exp(some / 2))
            return (roots * z * some * counted[at : at + 1, :, None]).sum()

        slopes = mx.grad(drawn)(zero)
        found = {name: found[name] + slopes[name].item() ** 2 for name in moved}
    count: Any = counted.sum().item()
    wanted, theirs = (logs({n: mx.array(at) for n in moved}, sensitivity.tokens) for at in (0.0, 1.0))
    lost: Any = ((mx.exp(wanted) * (wanted - theirs)).sum(-1) * counted).sum().item()
    return {name.removesuffix(".weight"): value / 2 / count for name, value in found.items()}, lost / count


@pytest.mark.parametrize(
    ("name", "calibrated"),
    [("llama", True), ("qwen3", False), ("gemma", True), ("qwen3_moe", True), ("qwen3_moe", False)],
)
def test_the_streamed_costs_are_those_of_the_whole_model(name: str, calibrated: bool, tmp_path: Path) -> None:
    counted = mx.array([[float(at % 3 > 0) for at in range(len(row))] for row in TOKENS])
    sensitivity, world = measured(name, tmp_path, counted, calibrated)
    model: Any = sensitivity.open().model
    model.set_dtype(mx.float32)
    expected, divergence = whole(sensitivity, world, counted, dict(tree_flatten(model.parameters())))
    costs = sensitivity.costs()
    assert costs.keys() == expected.keys()
    assert all(value >= 0 for value in costs.values())
    scale = max(expected.values())
    for path, value in expected.items():
        assert costs[path] == pytest.approx(value, rel=2e-2, abs=1e-3 * scale), path
    exact = sensitivity.exact()
    assert sensitivity.divergence(exact) == pytest.approx(divergence, rel=2e-3)
    assert sensitivity.divergence(exact) == sensitivity.divergence(exact)


def test_inputs_of_layers_on_the_disk_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "TOKENS", 40)
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))
    expected, divergence = sensitivity.costs(), sensitivity.divergence(sensitivity.exact())

    @contextmanager
    def new_file() -> Iterator[Path]:
        yield tmp_path / "scratch"
        (tmp_path / "scratch").unlink()

    sensitivity.shelf = Shelf(new_file, 0)
    assert sensitivity.costs() == expected
    assert sensitivity.divergence(sensitivity.exact()) == divergence
    assert sensitivity.shelf.stored == 3 * 2 * 6 * 20 * 64 * 4


def test_steps_are_told(tmp_path: Path) -> None:
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))
    told: list[tuple[int, int]] = []
    sensitivity.step = lambda done, total: told.append((done, total))
    sensitivity.costs()
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]


def test_a_model_without_a_gradient_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))

    def refuses(*_: object) -> None:
        raise ValueError("[Primitive::vjp] Not implemented for Odd.")

    monkeypatch.setattr("builder.engine.rounding.sensitivity.layer_slopes", refuses)
    with pytest.raises(NotDifferentiable, match=r"t: what each weight costs cannot be measured: \[Primitive"):
        sensitivity.costs()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gemma3n", "returns more than one hidden state for each token"),
        ("iquestloopcoder", "the model calls none of its layers"),
    ],
)
def test_a_model_whose_layers_are_no_chain_is_refused_by_name(name: str, says: str, tmp_path: Path) -> None:
    """Several streams of hidden states, and layers that nothing calls: no traceback, and no wrong numbers."""
    sensitivity, _ = measured(name, tmp_path, mx.ones((6, 20)))
    with pytest.raises(NotDifferentiable, match=says):
        sensitivity.costs()
    with pytest.raises(NotDifferentiable, match=says):
        sensitivity.divergence(mx.zeros(()))


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda h: (h, h), '"model.layers.0" returns more than one array'),
        (lambda h: h + 1, '"model.layers.1" does not take what the layer before it returns'),
    ],
)
def test_layers_that_do_more_than_hand_on_are_refused_by_name(
    forward: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))
    real = walk.walk

    def changed(model: Any, tokens: mx.array, visit: Any, **how: Any) -> Any:
        def then(path: str, layer: Any, run: Any) -> Any:
            given = run.forward
            if "more than one" in says:
                run.forward = lambda *a, **k: forward(given(*a, **k))
                return visit(path, layer, run)
            return forward(visit(path, layer, run))

        return real(model, tokens, then, **how)

    monkeypatch.setattr(module, "walk", changed)
    with pytest.raises(NotDifferentiable, match=says):
        sensitivity.costs()


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ([0, 0, 0], []),
        ([0, 1, 1], [([1, 2], [1, 1])]),
        ([0, 0, 1], [([2, 0], [1, 0])]),  # never one alone
        ([1], [([0], [1])]),
        ([1, 1, 1, 0, 1], [([0, 1], [1, 1]), ([2, 4], [1, 1])]),
    ],
)
def test_only_places_that_count_are_computed(
    counted: list[int], expected: list[tuple[list[int], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "_PLACES", 2)
    found = points.places(mx.array(counted, dtype=mx.float32))
    assert [(each.at, each.counts.reshape(-1).tolist()) for each in found] == expected
    whole = mx.arange(len(counted))[None, :, None]
    assert [each.of(whole).reshape(-1).tolist() for each in found] == [at for at, _ in expected]
