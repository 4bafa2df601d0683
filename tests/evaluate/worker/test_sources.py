"""An unquantized target that is not built has the numbers of the directory that it would be."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from builder.engine.inspect import inspect
from builder.evaluate.worker.scorable import load_float32
from builder.evaluate.worker.sources import stored_model
from tests import reference
from tests.architectures import REGISTRY, Architecture, checkpoint
from tests.comparison import fused, quiet
from tests.engine.test_adapters import CASES, save


def same(base: Path, adapter: Path | None, dtype: str | None, folder: Path) -> None:
    with quiet():
        reference.reference(
            fused(base, adapter, folder / "fused"),
            None,
            folder / "out",
            **({"dtype": dtype} if dtype else {}),
        )
    described = {"directory": str(base), "dequantize": False, "trust_remote_code": False}
    worn = {"name": "a", "base": "b", "path": str(adapter)} if adapter else None
    ours = stored_model(described, worn, dtype or inspect(base).default_dtype).model
    expected = dict(tree_flatten(load_float32(folder / "out").parameters()))
    found = dict(tree_flatten(ours.parameters()))
    assert found.keys() == expected.keys()
    assert [n for n, array in found.items() if not mx.array_equal(array, expected[n])] == []


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", None])
def test_with_every_kind_of_adapter(name: str, dtype: str | None, tmp_path: Path) -> None:
    architecture, make = CASES[name]
    base = checkpoint(tmp_path / "base", architecture)
    tensors, kind, parameters = make(base)
    same(base, save(tmp_path / "adapter", tensors, kind, **parameters), dtype, tmp_path)


# What their cast_predicate keeps stays as it is.
KEPT = [
    each for each in REGISTRY if each.model_type in ("deepseek_v3", "mamba2", "qwen3_next") and not each.label
]


@pytest.mark.parametrize("architecture", KEPT, ids=lambda each: each.model_type)
def test_what_a_model_keeps_in_its_own_type(architecture: Architecture, tmp_path: Path) -> None:
    same(checkpoint(tmp_path / "base", architecture), None, "float16", tmp_path)
