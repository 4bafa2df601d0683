"""Which experts stay, and what is left of the tensors."""

from __future__ import annotations

import pytest

from builder.keys import Key
from builder.weights.experts import Experts, Pruned, Routing, from_text
from builder.weights.structure import Parameter, Structure, TensorSpec

# Expert 0 is chosen most often and adds least. Expert 3 was never chosen, expert 2 adds nothing.
SEEN = Experts((9, 4, 5, 0), (0.9, 8.0, 0.0, 0.0), (0.09, 2.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("criterion", "keep", "kept"),
    [
        ("reap", 2, (0, 1)),
        ("reap", 1, (1,)),
        ("reap", 3, (0, 1, 2)),  # of two that add nothing the one that was chosen stays
        ("frequency", 2, (0, 2)),
        ("frequency", 1, (0,)),
        ("ean", 1, (1,)),
        ("ean", 2, (0, 1)),
    ],
)
def test_a_criterion_chooses(criterion: str, keep: int, kept: tuple[int, ...]) -> None:
    assert SEEN.best(keep, criterion) == kept


def test_reap_is_a_mean_over_the_tokens_and_ean_is_a_sum() -> None:
    rare = Experts((100, 1), (100.0, 2.0), (50.0, 1.5))
    assert rare.best(1, "reap") == (1,)
    assert rare.best(1, "ean") == (0,)


def test_each_group_keeps_the_same_number() -> None:
    four = Experts((4, 3, 2, 1), (4.0, 3.0, 2.0, 1.0), (4.0, 3.0, 2.0, 1.0))
    assert four.best(2, "frequency") == (0, 1)
    assert four.best(2, "frequency", groups=2) == (0, 2)


def test_equal_experts_stay_in_their_order() -> None:
    assert Experts((1,) * 4, (1.0,) * 4, (1.0,) * 4).best(2, "reap") == (0, 1)


def structure(*shapes: tuple[str, tuple[int, ...]]) -> Structure:
    parameters = tuple(Parameter(TensorSpec(name, "F16", shape)) for name, shape in shapes)
    return Structure("toy", parameters, (), frozenset(), None, False, {})


def test_every_tensor_with_a_place_for_each_expert_loses_places() -> None:
    whole = structure(
        ("layers.0.attn.weight", (8, 8)),
        ("layers.0.moe.up.weight", (4, 16, 8)),
        ("layers.0.moe.router.weight", (6, 8)),  # two places more than there are experts
    )
    places = {"layers.0.moe.up.weight": 0, "layers.0.moe.router.weight": 0}
    cut = Pruned(("n",), 4, {"layers.0": (0, 2)}, places, whole, Key("k"))
    shapes = {p.tensor.name: p.tensor.shape for p in cut.structure.parameters}
    assert shapes["layers.0.attn.weight"] == (8, 8)
    assert shapes["layers.0.moe.up.weight"] == (2, 16, 8)
    assert shapes["layers.0.moe.router.weight"] == (4, 8)
    assert cut.indices("layers.0.moe.router.weight", 6) == (0, 2, 4, 5)
    assert cut.indices("layers.0.attn.weight", 8) is None
    assert cut.keep == 2
    assert cut.digest("layers.1") is None
    other = Pruned(("n",), 4, {"layers.0": (1, 2)}, places, whole, Key("k"))
    assert cut.digest("layers.0") != other.digest("layers.0")


def test_what_was_measured_survives_the_store() -> None:
    found = Routing(("text_config", "n"), 4, 2, 1, 1, {"layers.0.w": 0}, {"layers.0": SEEN}, 64, 0.5, 8)
    assert from_text(found.to_text()) == found
    assert found.kept(2, "reap") == {"layers.0": (0, 1)}
    with pytest.raises((TypeError, KeyError, ValueError)):
        from_text('{"layers": {}}')
