"""What a `sanitize` makes of a checkpoint, read from mlx's graph. A new form of export_to_dot fails here."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from builder.engine.tracing import Trace, numbered, shortest
from builder.weights.structure import Origin

Tensors = dict[str, mx.array]


def plain(weights: Tensors) -> Tensors:
    return weights


def in_place(weights: Tensors) -> Tensors:
    weights["a"] *= 2.0
    return weights


def one_array_twice(weights: Tensors) -> Tensors:
    return {"a": weights["a"], "head": weights["a"].astype(mx.float32), "other": weights["a"]}


def several(weights: Tensors) -> Tensors:
    gate, up = mx.split(weights["c"], 2, axis=0)
    return {
        "renamed": weights["a"],
        "shifted": weights["b"] + 1.0,
        "gate": gate,
        "up": mx.contiguous(up.swapaxes(-1, -2)),
        "stack": mx.stack([weights[f"e.{number}.w"] for number in range(3)]),
        "normed": weights["d"] / mx.linalg.norm(weights["d"]),
        "unpacked": weights["packed"].astype(mx.float32) * weights["scale"],
        "halves": (weights["packed"].astype(mx.float32) * weights["scale"])[:2],
        "constant": mx.zeros((2,)),
    }


@pytest.fixture
def weights(tmp_path: Path) -> Tensors:
    names = ["a", "b", "c", "d", "left.x", "scale", *(f"e.{number}.w" for number in range(3))]
    made = {name: mx.ones((4, 4)) for name in names} | {"packed": mx.ones((4, 4), mx.uint8)}
    mx.save_safetensors(str(tmp_path / "t.safetensors"), made)
    loaded = mx.load(str(tmp_path / "t.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def test_what_is_as_it_was_has_no_origin(weights: Tensors) -> None:
    trace = Trace()
    trace.around(plain, weights)
    assert trace.origins() == {}
    assert trace.dropped({}) == frozenset()


def test_a_change_in_place_is_seen(weights: Tensors) -> None:
    trace = Trace()
    trace.around(in_place, weights)
    assert trace.origins() == {"a": Origin(("a",), arithmetic=True)}


def test_one_tensor_under_several_names(weights: Tensors) -> None:
    trace = Trace()
    trace.around(one_array_twice, weights)
    assert trace.origins() == {name: Origin(("a",), same=True) for name in ("head", "other")}


def test_every_kind_of_origin(weights: Tensors) -> None:
    trace = Trace()
    trace.around(several, weights)
    origins = trace.origins()
    assert origins == {
        "renamed": Origin(("a",), same=True),
        "shifted": Origin(("b",), arithmetic=True),
        "gate": Origin(("c",)),
        "up": Origin(("c",)),
        "stack": Origin(("e.*.w",), 3),
        "normed": Origin(("d",), arithmetic=True),
        "unpacked": Origin(("packed",), same=True, packed=True),
        "halves": Origin(("packed", "scale"), arithmetic=True, packed=True),
    }
    assert trace.dropped(origins) == {"left.x"}
    assert list(origins["stack"].names()) == ["e.0.w", "e.1.w", "e.2.w"]


def test_more_tensors_than_a_function_of_mlx_takes_names(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "t.safetensors"), {f"e.{n}.w": mx.zeros((1,)) for n in range(1100)})
    weights = mx.load(str(tmp_path / "t.safetensors"))
    assert isinstance(weights, dict)
    trace = Trace()
    trace.around(lambda w: {**w, "e.7.w": w["e.8.w"], "sum": w["e.0.w"] + w["e.1099.w"]}, weights)
    assert trace.origins() == {
        "e.7.w": Origin(("e.8.w",), same=True),
        "sum": Origin(("e.0.w", "e.1099.w"), arithmetic=True),
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], (("a.*.w",), 3)),
        (["m.5.e.1.w", "m.5.e.0.w", "m.5.e.2.w"], (("m.5.e.*.w",), 3)),
        (["a.1.w", "a.2.w", "a.3.w"], (("a.1.w", "a.2.w", "a.3.w"), 0)),
        (["a.0.w", "a.1.w", "b.2.w"], (("a.0.w", "a.1.w", "b.2.w"), 0)),
        (["a.0.0.w", "a.1.1.w", "a.2.2.w"], (("a.0.0.w", "a.1.1.w", "a.2.2.w"), 0)),
        (["a.0.w", "a.1.w"], (("a.0.w", "a.1.w"), 0)),
    ],
)
def test_numbered(names: list[str], said: tuple[tuple[str, ...], int]) -> None:
    assert numbered(names) == said


def test_shortest() -> None:
    dropped = frozenset({"vision.a.w", "vision.b.w", "model.mtp.w", "lm_head.weight"})
    assert shortest(dropped, ["model.norm.w"]) == ("lm_head", "model.mtp", "vision")
