"""What is measured of experts, against a computation by hand, and what planted redundancy shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from builder.engine.expert_places import find
from builder.engine.inspect import inspect
from builder.engine.loading import load_base
from builder.engine.pruning import prune
from builder.engine.routing import measure
from builder.engine.stream import cut
from builder.keys import Key
from builder.weights.experts import Pruned, Routing
from tests.mixture import Tensors, make_mixture

KEEP = 6  # of 8 experts


def text(sequences: int = 8, length: int = 32) -> mx.array:
    return mx.random.randint(3, 250, (sequences, length), key=mx.random.key(5))


def measured(folder: Path, tokens: mx.array | None = None) -> Routing:
    model, config = load_base(folder)
    some = text() if tokens is None else tokens
    told: list[tuple[int, int]] = []
    found = measure(
        model,
        cut(model, None, compiled=False),
        find(model, config),
        some,
        "qwen3_moe",
        lambda done, total: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1] >= len(found.layers)
    return found


def pruned(folder: Path, found: Routing, kept: dict[str, tuple[int, ...]]) -> Any:
    """The model without the others, in float32."""
    model, config = load_base(folder)
    cut_out = Pruned(found.setting, found.count, kept, found.places, inspect(folder), Key("k"))
    model, config = prune(model, config, cut_out)
    assert len(next(iter(kept.values()))) in (config.get("num_experts"), config.get("n_routed_experts"))
    model.set_dtype(mx.float32)
    return model


def whole(folder: Path) -> Any:
    model, _ = load_base(folder)
    model.set_dtype(mx.float32)
    return model


def by_hand(model: Any, tokens: mx.array) -> dict[str, np.ndarray[Any, Any]]:
    """Counts, sums of norms, and sums of weighted norms by layer, from the formula of qwen3_moe."""
    found = {}
    hidden = model.model.embed_tokens(tokens)
    for number, layer in enumerate(model.model.layers):
        attended = hidden + layer.self_attn(layer.input_layernorm(hidden), "causal", None)
        given = layer.post_attention_layernorm(attended).reshape(-1, hidden.shape[-1])
        gates = mx.softmax(layer.mlp.gate(given), axis=-1)
        sums = np.zeros((3, 8))
        for row, scores in zip(given, np.array(gates), strict=True):
            top = np.argsort(-scores)[:2]
            for expert in top:
                indices = mx.array([[int(expert)]])
                returned = layer.mlp.switch_mlp(row[None], indices)[0, 0]
                norm = float(mx.sqrt(mx.square(returned).sum()).item())
                sums[:, expert] += 1, norm, norm * scores[expert] / scores[top].sum()
        found[f"model.layers.{number}"] = sums
        hidden = layer(hidden, "causal", None)
    return found


def test_the_measures_are_those_of_the_formulas(tmp_path: Path) -> None:
    folder = make_mixture(tmp_path / "base", torch_dtype="float32")
    tokens = text(2, 6)
    found, expected = measured(folder, tokens), by_hand(whole(folder), tokens)
    assert (found.count, found.top_k, found.tokens) == (8, 2, 12)
    for block, sums in expected.items():
        each = found.layers[block]
        assert list(each.chosen) == sums[0].astype(int).tolist()
        np.testing.assert_allclose(each.norms, sums[1], rtol=2e-4)
        np.testing.assert_allclose(each.weighted, sums[2], rtol=2e-4)


# -- planted redundancy ------------------------------------------------------------------------------------


def never(tensors: Tensors) -> None:
    """Experts 6 and 7 get no weight at all from a softmax, whatever the token is."""
    for name in tensors:
        if name.endswith("mlp.gate.weight"):
            tensors[name] = mx.abs(tensors[name]) * mx.array([[1.0]] * 6 + [[-100.0]] * 2)
        if name.endswith("post_attention_layernorm.weight"):
            tensors[name] = mx.abs(tensors[name])
        if name.endswith("embed_tokens.weight"):
            tensors[name] = 1 + mx.abs(tensors[name])


def unwanted(tensors: Tensors) -> None:
    """A router with a correction for each expert never wants experts 6 and 7."""
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name] = mx.array([0.0] * 6 + [-100.0] * 2)


def silent(tensors: Tensors) -> None:
    """Experts 2 and 5 return zero, and the router likes them."""
    for name, array in tensors.items():
        if name.endswith("down_proj.weight"):
            loud = mx.array([1.0, 1, 0, 1, 1, 0, 1, 1]).reshape(8, 1, 1)
            tensors[name] = array * loud
        if name.endswith("mlp.gate.weight"):
            liked = mx.array([1.0, 1, 3, 1, 1, 3, 1, 1]).reshape(8, 1)
            tensors[name] = array * liked


def twins(tensors: Tensors) -> None:
    """Experts 4 and 5 are copies of 0 and 1 that are chosen beside them, with little weight."""
    order = mx.array([0, 1, 2, 3, 0, 1, 6, 7])
    for name, array in tensors.items():
        if "switch_mlp" in name:
            tensors[name] = array[order]
        if name.endswith("mlp.gate.weight"):
            tensors[name] = array[order] * mx.array([20.0, 20, 1, 1, 12, 12, 1, 1]).reshape(8, 1)


GLM: Mapping[str, Any] = {
    "model_type": "glm4_moe",
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 2,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "attention_bias": False,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("plant", "changes"), [(never, {}), (unwanted, {**GLM, "n_group": 1, "topk_group": 1})]
)
def test_without_experts_that_are_never_chosen_the_answers_have_the_same_bits(
    tmp_path: Path, plant: Callable[[Tensors], None], changes: Mapping[str, Any]
) -> None:
    folder = make_mixture(tmp_path / "base", plant, **changes)
    found = measured(folder)
    assert all(each.chosen[6:] == (0, 0) for each in found.layers.values())
    kept = found.kept(KEEP, "reap")
    assert set(kept.values()) == {tuple(range(KEEP))}
    tokens = text(4, 16)
    assert mx.array_equal(pruned(folder, found, kept)(tokens), whole(folder)(tokens))


def test_reap_leaves_out_experts_that_return_nothing_where_frequency_keeps_them(tmp_path: Path) -> None:
    folder = make_mixture(tmp_path / "base", silent)
    found = measured(folder)
    for each in found.layers.values():
        assert not {2, 5} & set(each.best(KEEP, "reap"))
        assert not {2, 5} & set(each.best(KEEP, "ean"))
        assert {2, 5} <= set(each.best(KEEP, "frequency"))


def test_reap_leaves_out_copies_where_frequency_keeps_them(tmp_path: Path) -> None:
    folder = make_mixture(tmp_path / "base", twins)
    found = measured(folder)
    reap, frequency = (found.kept(KEEP, name) for name in ("reap", "frequency"))
    assert any({4, 5} <= set(kept) for kept in frequency.values()), found.layers
    assert all(not {4, 5} & set(kept) for kept in reap.values()), found.layers
    tokens = text(4, 16)
    exact = whole(folder)(tokens)
    lost = [distance(pruned(folder, found, kept)(tokens), exact) for kept in (reap, frequency)]
    assert lost[0] < lost[1]


def distance(logits: mx.array, exact: mx.array) -> float:
    """KL in nats for each token."""
    logs, wanted = (each - mx.logsumexp(each, -1, keepdims=True) for each in (logits, exact))
    return float((mx.exp(wanted) * (wanted - logs)).sum(-1).mean().item())


def test_reap_finds_the_best_choice_of_all_where_experts_are_copies(tmp_path: Path) -> None:
    """All 28 choices of six experts, in a model of one layer."""
    folder = make_mixture(tmp_path / "base", twins, num_hidden_layers=1)
    found = measured(folder)
    tokens, (block,) = text(4, 16), found.layers
    exact = whole(folder)(tokens)
    lost = {
        kept: distance(pruned(folder, found, {block: kept})(tokens), exact)
        for kept in combinations(range(8), KEEP)
    }
    assert lost[found.kept(KEEP, "reap")[block]] == min(lost.values())
    assert lost[found.kept(KEEP, "frequency")[block]] > 10 * min(lost.values())
