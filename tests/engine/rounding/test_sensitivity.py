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
from builder.engine.rounding import sensitivity as module
from builder.engine.rounding import walk
from builder.engine.rounding.points import Opened
from builder.engine.rounding.sensitivity import POINTS, NotDifferentiable, Sensitivity
from builder.engine.rounding.shelf import Shelf
from builder.engine.rounding.stream import read_rounded
from builder.engine.stream import cut
from builder.plan.quantization import resolve
from builder.spec.types import Quantization, Variant
from tests.architectures import checkpoint
from tests.engine.rounding.models import BY_NAME, World, runnable, text

THREE = Variant("3bit", quantization=Quantization(3, 32))
TOKENS = text(6, 20)


def measured(name: str, folder: Path, counted: mx.array) -> tuple[Sensitivity, World]:
    base = checkpoint(folder / "base", runnable(BY_NAME[name]))
    world = World(base, folder / "rounded", THREE)
    world.round(TOKENS)

    def opened() -> Opened:
        model, _ = load_base(base)
        return Opened(model, cut(model, None, compiled=False))

    files = {block: world.file(block) for block in world.structure.blocks}
    how = resolve(world.structure, THREE)[0]
    return Sensitivity(opened, files, how, None, mx.array(TOKENS), counted, "t"), world


def whole(sensitivity: Sensitivity, counted: mx.array) -> tuple[dict[str, float], float]:
    """The same by one gradient of all weights, and the divergence itself."""
    model: Any = sensitivity.open().model
    model.set_dtype(mx.float32)
    exact = dict(tree_flatten(model.parameters()))
    moved: dict[str, mx.array] = {}
    for file in sensitivity.files.values():
        for name, array in read_rounded(file, sensitivity.quantization).items():
            if name.rpartition(".")[0] in sensitivity.quantization and name.endswith(".weight"):
                moved[name] = array - exact[name]

    def logs(place: mx.array | dict[str, mx.array]) -> mx.array:
        at = place if isinstance(place, dict) else dict.fromkeys(moved, place)
        new = {name: exact[name] + at[name] * moved[name] for name in moved}
        model.update(tree_unflatten(list({**exact, **new}.items())))
        made = model(sensitivity.tokens).astype(mx.float32)
        return made - mx.logsumexp(made, -1, keepdims=True)

    wanted = logs(mx.array(0.0))
    mx.eval(wanted)

    def loss(places: Any) -> mx.array:
        lost = (mx.exp(wanted) * (wanted - logs(places))).sum(-1) * counted
        return lost.sum() / counted.sum()

    found = dict.fromkeys(moved, 0.0)
    for place, weight in POINTS:
        slopes = mx.grad(loss)({name: mx.array(place) for name in moved})
        found = {name: found[name] + weight * slopes[name].item() for name in moved}
    divergence: Any = loss({name: mx.array(1.0) for name in moved}).item()
    return {name.removesuffix(".weight"): value for name, value in found.items()}, divergence


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "qwen3_moe"])
def test_the_streamed_shares_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    """And they add up to the divergence: that is what makes them shares."""
    counted = mx.array([[float(at % 3 > 0) for at in range(len(row))] for row in TOKENS])
    sensitivity, _ = measured(name, tmp_path, counted)
    expected, divergence = whole(sensitivity, counted)
    shares = sensitivity.shares()
    assert shares.tokens == int(counted.sum().item())
    assert shares.cost.keys() == expected.keys()
    scale = max(map(abs, expected.values()))
    for path, value in expected.items():
        assert shares.cost[path] == pytest.approx(value, rel=1e-2, abs=1e-3 * scale), path
    assert sum(shares.cost.values()) == pytest.approx(divergence, rel=0.05)
    assert sensitivity.divergence() == pytest.approx(divergence, rel=1e-3)


def test_inputs_of_layers_on_the_disk_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "TOKENS", 40)
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))
    expected, divergence = sensitivity.shares().cost, sensitivity.divergence()

    @contextmanager
    def new_file() -> Iterator[Path]:
        yield tmp_path / "scratch"
        (tmp_path / "scratch").unlink()

    sensitivity.shelf = Shelf(new_file, 0)
    assert sensitivity.shares().cost == expected
    assert sensitivity.divergence() == divergence
    assert sensitivity.shelf.stored == (3 + 2) * 2 * 6 * 20 * 64 * 4


def test_steps_are_told(tmp_path: Path) -> None:
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))
    told: list[tuple[int, int]] = []
    sensitivity.step = lambda done, total: told.append((done, total))
    sensitivity.shares()
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]


def test_a_model_without_a_gradient_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensitivity, _ = measured("llama", tmp_path, mx.ones((6, 20)))

    def refuses(*_: object) -> None:
        raise ValueError("[Primitive::vjp] Not implemented for Odd.")

    monkeypatch.setattr("builder.engine.rounding.sensitivity.layer_gradient", refuses)
    with pytest.raises(NotDifferentiable, match=r"t: what each weight costs cannot be measured: \[Primitive"):
        sensitivity.shares()


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
        sensitivity.shares()
    with pytest.raises(NotDifferentiable, match=says):
        sensitivity.divergence()


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
        sensitivity.shares()
