"""Hidden states on the disk: the same bits, nothing with a name, nothing after the array is gone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from builder.engine.rounding import walk as walk_module
from builder.engine.rounding.shelf import Growing, Shelf
from builder.engine.rounding.walk import Run, walk
from builder.errors import EngineError
from tests.engine.rounding.models import model, text
from tests.open_files import DESCRIPTORS, open_below

# Layers that return one array, also where they are given several. Layers that are not cut along the first
# dimension.
ON_DISK = ["llama", "talkie", "gemma2", "qwen3_moe", "deepseek_v3", "mamba"]
IN_MEMORY = ["gemma3n"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "TOKENS", 24)


@pytest.fixture
def new_file(tmp_path: Path) -> Callable[[], AbstractContextManager[Path]]:
    @contextmanager
    def one() -> Iterator[Path]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        path.touch()
        try:
            yield path
        finally:
            path.unlink()

    return one


def runs(path: str, layer: nn.Module, run: Run) -> Any:
    return run()


@pytest.mark.parametrize(
    "name",
    [*ON_DISK[:2], *IN_MEMORY, *(pytest.param(name, marks=pytest.mark.slow) for name in ON_DISK[2:])],
)
def test_the_disk_changes_no_bit(name: str, new_file: Any, tmp_path: Path) -> None:
    tokens = text(7, 12)
    expected = walk(model(name), tokens, runs)
    shelf, named, opened = Shelf(new_file, 0), set[str](), list[int]()

    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        run.watch(list)
        named.update(each.name for each in tmp_path.iterdir())
        opened.append(len(open_below(tmp_path)))
        return run()

    made = walk(model(name), tokens, visit, shelf=shelf)
    assert np.array_equal(np.array(made), np.array(expected))
    assert (shelf.stored > 0) is (name in ON_DISK)
    del made
    assert not named
    assert not list(tmp_path.iterdir())
    gc.collect()
    assert not shelf._stored
    assert not open_below(tmp_path)
    assert any(opened) is (name in ON_DISK and DESCRIPTORS.exists())


def test_the_limit_counts_what_is_alive(new_file: Any) -> None:
    tokens = text(7, 12)
    state = 7 * 12 * 64 * 4
    for limit, on_disk in ((0, 2), (state - 1, 2), (state, 1), (2 * state, 0)):
        shelf, kept = Shelf(new_file, limit), []

        def visit(path: str, layer: nn.Module, run: Run, kept: list[Any] = kept) -> Any:
            kept.append(run())
            return kept[-1]

        walk(model("llama"), tokens, visit, shelf=shelf)
        assert shelf.stored == on_disk * state, limit
        assert shelf.held == (2 - on_disk) * state
        kept.clear()
        gc.collect()
        assert shelf.held == 0


def test_a_disk_that_is_full_is_an_error_of_the_disk(
    new_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Growing, "add", full)
    with pytest.raises(OSError, match="No space left"):
        walk(model("llama"), text(7, 12), runs, shelf=Shelf(new_file, 0))
    assert not list(tmp_path.iterdir())


def test_a_layer_that_fails_leaves_no_file(new_file: Any, tmp_path: Path) -> None:
    def visit(path: str, layer: nn.Module, run: Run) -> Any:
        forward, called = run.forward, list[int]()

        def broken(*args: Any, **kwargs: Any) -> mx.array:
            called.append(1)
            if len(called) > len(walk_module.streams()):
                raise ValueError("later pieces fail")
            made: mx.array = forward(*args, **kwargs)
            return made

        run.forward = broken
        return run()

    with pytest.raises(EngineError, match="later pieces fail"):
        walk(model("llama"), text(23, 12), visit, shelf=Shelf(new_file, 0))
    assert not list(tmp_path.iterdir())
