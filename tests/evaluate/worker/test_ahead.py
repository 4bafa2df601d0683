"""Stacks of experts are read from the files of a model, ahead of their use, as mlx reads them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench import inputs
from builder.engine.stored import Stored
from builder.errors import BuildError
from builder.evaluate.worker import ahead
from builder.evaluate.worker.ahead import Ahead
from builder.evaluate.worker.scorable import load_scorable


def stacks_of(folder: Path) -> dict[int, Stored]:
    stored = load_scorable(inputs.make_model(folder, inputs.SHAPES["tiny_moe"])).stored
    assert {path.split(".")[-1] for path, each in stored.items() if not each.places} == {"embed_tokens"}
    return dict(enumerate(each for each in stored.values() if len(each.shape) == 3))


def test_the_bytes_of_mlx_in_memory_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "PIECE", 4096)  # several reads for each expert
    stacks = stacks_of(tmp_path / "model")
    assert len(stacks) > ahead.STACKS + 1
    made, memory = 0, Ahead._memory

    def counted(self: Ahead, nbytes: int) -> object:
        nonlocal made
        before = {id(each) for each in self._free}
        found = memory(self, nbytes)
        made += id(found) not in before
        return found

    monkeypatch.setattr(Ahead, "_memory", counted)
    with Ahead(stacks) as reader:
        for number, stored in stacks.items():
            assert number in reader and len(stored.places) == 1
            (held,) = reader.take(number)
            assert len(held) == len(stored.places[0]) == stored.shape[0]
            theirs = np.array(stored.weight.view(mx.uint16))
            assert all(np.array_equal(ours, their) for ours, their in zip(held, theirs, strict=True))
            del held
            reader.drop(number)
    assert made <= ahead.STACKS + 1


def test_a_file_that_is_cut_meanwhile_is_named(tmp_path: Path) -> None:
    stacks = stacks_of(tmp_path / "model")
    last = max(place for stored in stacks.values() for place in stored.places[0])
    with last.path.open("rb+") as file:
        file.truncate(last.end - 5000)
    with Ahead(stacks) as reader, pytest.raises(BuildError, match=f"{last.path.name}: became shorter"):
        for number in stacks:
            reader.take(number)


def test_a_reader_that_nobody_asks_ends(tmp_path: Path) -> None:
    with Ahead(stacks_of(tmp_path / "model")) as reader:
        pass
    assert not reader._thread.is_alive()
