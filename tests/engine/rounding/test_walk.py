"""A walk computes what the model computes, whatever its layers are given, and refuses what it cannot cut."""

from __future__ import annotations

import os
from collections import namedtuple
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from builder.engine.rounding import walk as walk_module
from builder.engine.rounding.stream import layer_paths
from builder.engine.rounding.walk import Run, walk
from builder.errors import EngineError
from tests.engine.rounding.models import model, text

# What each stands for: masks as arrays, stacked streams and inputs for each layer, latent attention, experts,
# tied heads, recurrence, a state from the first layer, keys from the layer before, several returned arrays.
NAMES = [
    "llama", "qwen3", "gemma2", "gemma3n", "deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "olmoe",
    "llama-tied", "ministral3", "mamba", "mamba2", "rwkv7", "qwen3_next", "falcon_h1", "hunyuan",
    "longcat_flash_ngram", "recurrent_gemma", "talkie", "gptj",
]  # fmt: skip


def runs(path: str, layer: nn.Module, run: Run) -> Any:
    return run()


def close(made: mx.array, expected: mx.array) -> bool:
    assert made.shape == expected.shape
    scale = float(mx.abs(expected).max())
    return bool(mx.allclose(made, expected, rtol=1e-4, atol=1e-4 * scale))


@pytest.mark.parametrize("name", NAMES)
def test_a_walk_gives_what_the_model_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text(7, 12)
    expected = model(name)(tokens)
    seen: list[str] = []

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        seen.append(path)
        return runs(path, layer, run)

    for at_a_time in (1, 2, 3, 7):
        monkeypatch.setattr(walk_module, "TOKENS", 12 * at_a_time)
        seen.clear()
        assert close(walk(model(name), tokens, visit), expected), at_a_time
        assert set(seen) <= layer_paths(model(name))
        assert len(set(seen)) >= 2


@pytest.mark.parametrize("sequences", range(1, 18))
def test_any_number_of_sequences(sequences: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is a dimension of the model: 2 stacked streams, 4 heads, 16 columns of a head."""
    monkeypatch.setattr(walk_module, "TOKENS", 16)
    for name in ("gemma2", "gemma3n", "rwkv7", "hunyuan", "deepseek_v3"):
        tokens = text(sequences, 8)
        if sequences == 8:
            with pytest.raises(EngineError, match="8 sequences of 8 tokens cannot be told apart"):
                walk(model(name), tokens, runs)
        else:
            assert close(walk(model(name), tokens, runs), model(name)(tokens)), name


def test_what_cannot_be_told_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 8)
    with pytest.raises(EngineError) as caught:  # two stacked streams of two sequences
        walk(model("gemma3n"), text(2, 8), runs)
    assert "it is given an array (2, 2, 8, 64) for 2 sequences" in caught.value.message
    assert caught.value.hint_text == "Remove `calibration`, or choose another number of `samples`."
    monkeypatch.setattr(walk_module, "TOKENS", 16)
    assert close(walk(model("gemma3n"), text(2, 8), runs), model("gemma3n")(text(2, 8)))  # in one piece


@pytest.mark.parametrize("cores", [1, 3, None])
def test_the_number_of_cores_changes_nothing(cores: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 20)
    tokens = text(9, 10)
    expected = walk(model("qwen3_moe"), tokens, runs)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert bool((walk(model("qwen3_moe"), tokens, runs) == expected).all())


def test_a_layer_can_be_run_twice_and_changed_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 24)
    tokens, made = text(5, 12), model("llama")
    expected = made(tokens)

    def visit(path: str, layer: Any, run: Run) -> Any:
        own = layer.mlp.down_proj.weight
        layer.mlp.down_proj.weight = mx.zeros_like(own)
        before = run()
        layer.mlp.down_proj.weight = own
        after = run()
        assert not bool((before == after).all())
        return after

    assert close(walk(made, tokens, visit), expected)


def test_more_arrays_are_computed_with_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 12)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked = []

    def also() -> list[mx.array]:
        asked.append(1)
        return []

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        run.watch(also)
        return run()

    walk(model("llama"), text(5, 12), visit)
    assert len(asked) == 2 * -(-5 // len(walk_module.streams()))  # layers, pieces for each stream


def test_classes_come_back() -> None:
    made = model("llama")
    kinds = [type(layer) for layer in made.model.layers]

    def fails(path: str, layer: nn.Module, run: Run) -> Any:
        assert type(layer) not in kinds
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # what a visitor raises is its own
        walk(made, text(2, 4), fails)
    assert [type(layer) for layer in made.model.layers] == kinds


# -- models that nobody wrote yet ---------------------------------------------------------------------------

Pair = namedtuple("Pair", "first second")


class Layer(nn.Module):
    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how
        self.proj = nn.Linear(8, 8)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.how(self.proj, *args, **kwargs)


class Toy(nn.Module):
    """One layer that is called as `call` says, on inputs [sequences, length, 8]."""

    def __init__(self, call: Any, how: Any) -> None:
        super().__init__()
        self.call = call
        self.layers = [Layer(how)]

    def __call__(self, tokens: mx.array) -> Any:
        return self.call(self.layers[0], mx.sin(tokens[..., None] * mx.arange(1, 9) / 7))


class Cache:
    """Something that a layer changes."""


TOYS: dict[str, tuple[Any, Any]] = {
    "a pair": (lambda layer, x: sum(layer(Pair(x, 2 * x))), lambda proj, p: Pair(proj(p.first), p.second)),
    "a dict": (lambda layer, x: layer(x=x)["y"], lambda proj, x: {"y": proj(x), "z": 3, "n": None}),
    "a list": (lambda layer, x: layer([x, x])[1], lambda proj, xs: [proj(x) for x in xs]),
    "nothing": (lambda layer, x: x if layer(x) is None else None, lambda proj, x: None),
    "a number": (lambda layer, x: layer(x)[0] * layer(x)[1], lambda proj, x: (proj(x), mx.array(2.0))),
    "positions": (lambda layer, x: layer(x, mx.arange(x.shape[1])[None]),
                  lambda proj, x, at: proj(x) + at[..., None]),
    "a mask": (lambda layer, x: layer(x, nn.MultiHeadAttention.create_additive_causal_mask(x.shape[1])),
               lambda proj, x, mask: mx.softmax(x @ x.swapaxes(1, 2) + mask, -1) @ proj(x)),
    "a mask for each": (lambda layer, x: layer(x, mx.ones((x.shape[0], 1, 1, 1))),
                        lambda proj, x, mask: proj(x) * mask[:, 0]),
    "a stack": (lambda layer, x: layer(mx.stack([x, x, x]))[1], lambda proj, x: proj(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", TOYS)
def test_whatever_a_layer_takes_and_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 10)
    toy, tokens = Toy(*TOYS[name]), text(9, 5)
    assert close(walk(toy, tokens, runs), toy(tokens))


def test_a_state_that_a_layer_changes_is_refused() -> None:
    toy = Toy(lambda layer, x: layer(x, cache=Cache()), lambda proj, x, cache: proj(x))
    with pytest.raises(
        EngineError, match=r"^layers.0: mlx-lm cannot run .*\(it is given a Cache, which it changes"
    ):
        walk(toy, text(3, 4), runs)
    for name in ("deepseek_v41", "afm7"):
        with pytest.raises(EngineError, match="it is given a .*Cache, which it changes"):
            walk(model(name), text(3, 4), runs)


@pytest.mark.parametrize("where", ["model", "layer"])
def test_code_that_fails_is_one_clear_error(where: str) -> None:
    def fails(*_: Any) -> Any:
        raise IndexError("list index\nout of range")

    toy = Toy(fails, None) if where == "model" else Toy(lambda layer, x: layer(x), fails)
    with pytest.raises(EngineError) as caught:
        walk(toy, text(3, 4), runs)
    assert caught.value.message == (
        f"{'the model' if where == 'model' else 'layers.0'}: mlx-lm cannot run this model for a calibration"
        " text (list index out of range)."
    )


def test_pieces_are_the_arguments_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 16)
    sizes = []

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        pieces = list(run.pieces())
        sizes.append([args[0].shape[0] for args, _ in pieces])
        assert all(args[1].shape == (8, 8) for args, _ in pieces)
        whole = mx.concatenate([args[0] for args, _ in pieces])
        assert bool((whole == run.args[0]).all())
        return run()

    walk(model("gemma2"), text(5, 8), visit)
    assert sizes == [[2, 2, 1]] * 2
    assert np.isfinite(np.array(walk(model("gemma2"), text(5, 8), runs))).all()
