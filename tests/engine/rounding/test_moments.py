"""The moments that taps collect are those of the inputs, for each linear layer and for each expert."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
import pytest

from builder.engine.rounding import walk as walk_module
from builder.engine.rounding.moments import Seen, Sum, taps
from builder.engine.rounding.walk import Run, walk
from tests.engine.rounding.models import model, text

Inputs = dict[str, list[npt.NDArray[np.float64]]]
NAMES = [
    "llama", "qwen3", "gemma2", "gemma3n", "deepseek_v3", "qwen3_moe", "mixtral", "olmoe", "llama-tied",
    "mamba2", "rwkv7", "qwen3_next", "falcon_h1", "hunyuan", "iquestloopcoder",
]  # fmt: skip


@contextmanager
def noted(root: nn.Module) -> Iterator[Inputs]:
    """Notes every input of every linear layer as it is, and of a stack of experts by `path:expert`."""
    from mlx_lm.models.switch_layers import SwitchLinear

    found: Inputs = {}
    paths = {id(module): path for path, module in root.named_modules()}
    plain, switch = nn.Linear.__call__, SwitchLinear.__call__
    as_linear = nn.Embedding.as_linear

    def linear(self: Any, x: Any) -> Any:
        found.setdefault(paths[id(self)], []).append(np.array(x, np.float64).reshape(-1, x.shape[-1]))
        return plain(self, x)

    def experts(self: Any, x: Any, indices: Any, *rest: Any, **options: Any) -> Any:
        given, chosen = np.array(x, np.float64), np.array(indices)
        for place in np.ndindex(*chosen.shape):
            at = tuple(min(index, size - 1) for index, size in zip(place, given.shape, strict=False))
            found.setdefault(f"{paths[id(self)]}:{chosen[place]}", []).append(given[at].reshape(1, -1))
        return switch(self, x, indices, *rest, **options)

    def head(self: Any, x: Any) -> Any:
        found.setdefault(paths[id(self)], []).append(np.array(x, np.float64).reshape(-1, x.shape[-1]))
        return as_linear(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Embedding, "as_linear", head)
        patch.setattr(nn.Linear, "__call__", linear)
        patch.setattr(SwitchLinear, "__call__", experts)
        yield found


def expected(inputs: Inputs) -> dict[str, tuple[int, npt.NDArray[np.float64]]]:
    whole = {path: np.concatenate(parts) for path, parts in inputs.items()}
    return {path: (len(each), each.T @ each / len(each)) for path, each in whole.items()}


def collected(seen: Seen) -> dict[str, tuple[int, Any]]:
    found = {path: (each.count, each.mean) for path, each in seen.plain.items()}
    for path, stack in seen.experts.items():
        found |= {f"{path}:{number}": (each.count, each.mean) for number, each in stack.items()}
    return found


def check(made: dict[str, tuple[int, Any]], direct: dict[str, tuple[int, Any]]) -> None:
    assert made.keys() == direct.keys()
    for path, (count, mean) in direct.items():
        assert made[path][0] == count, path
        assert np.allclose(made[path][1], mean, rtol=1e-3, atol=1e-5 * abs(mean).max()), path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [4, 40], ids=["few tokens", "many tokens"])
def test_moments_are_those_of_the_inputs(name: str, length: int) -> None:
    """A few tokens go to experts as they come, and many (64 and more) sorted by expert."""
    made, tokens = model(name), text(3, length)
    with noted(made) as inputs:
        mx.eval(made(tokens))
    with taps(made) as seen:
        mx.eval(made(tokens), seen.open())
    check(collected(seen), expected(inputs))
    assert len(inputs) >= 5


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "mixtral"])
def test_moments_of_pieces_are_those_of_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 24)
    made, tokens = model(name), text(5, 12)
    with noted(made) as inputs:
        mx.eval(made(tokens))
    found: dict[str, tuple[int, Any]] = {}

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        with taps(layer, path) as seen:
            run.watch(seen.open)
        found.update(collected(seen))
        return run()

    walk(made, tokens, visit)
    check(found, {path: each for path, each in expected(inputs).items() if ".layers." in path})


def test_the_head_of_tied_embeddings() -> None:
    made, tokens = model("llama-tied"), text(2, 9)
    with taps(made) as seen:
        mx.eval(made(tokens))
    inputs = np.array(made.model(tokens), np.float64).reshape(-1, 64)
    assert seen.plain["model.embed_tokens"].count == 18
    mean = seen.plain["model.embed_tokens"].mean
    assert mean is not None
    assert np.allclose(mean, inputs.T @ inputs / 18, rtol=1e-3, atol=1e-5)


def test_layers_that_share_an_input_share_an_array() -> None:
    with taps(model("qwen3_moe")) as seen:
        mx.eval(model("qwen3_moe")(text(2, 9)), model("qwen3_moe")(text(3, 7)), seen.open())
    query, key, value = (seen.plain[f"model.layers.0.self_attn.{name}_proj"].total for name in "qkv")
    assert query is key is value
    assert seen.plain["model.layers.1.self_attn.q_proj"].total is not query
    gate, up, down = (seen.experts[f"model.layers.0.mlp.switch_mlp.{n}_proj"] for n in ("gate", "up", "down"))
    assert all(gate[number].total is up[number].total for number in up)
    assert all(down[number].total is not up[number].total for number in up)


class Shares(nn.Module):
    """`a` and `b` take one input, and then `b` another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.a(x) + self.b(x)
        return self.b(mx.sin(y)) + self.a(mx.cos(y))


def test_an_input_of_one_layer_is_not_counted_for_another() -> None:
    made, given = Shares(), mx.random.normal((3, 4), key=mx.random.key(0))
    for _ in range(2):
        with noted(made) as inputs:
            mx.eval(made(given), made(2 * given))
        with taps(made) as seen:
            mx.eval(made(given), made(2 * given))
        check(collected(seen), expected(inputs))


def test_classes_come_back() -> None:
    made = model("olmoe")
    kinds = [type(module) for module in made.modules()]
    with pytest.raises(KeyError), taps(made):
        assert [type(module) for module in made.modules()] != kinds
        raise KeyError
    assert [type(module) for module in made.modules()] == kinds


def test_a_layer_that_nothing_reached_has_no_moments() -> None:
    assert Sum().mean is None
    with taps(model("llama")) as seen:
        pass
    assert seen.plain == {}
    assert seen.open() == []
