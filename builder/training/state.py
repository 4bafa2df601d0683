"""Checkpoints: everything that decides how a run goes on, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

# What a tensor of a checkpoint belongs to, before the first dot of its name.
_MODEL, _OPTIMIZER, _SUM, _BEST = "model.", "optimizer.", "sum.", "best."


@dataclass
class Progress:
    """What has happened so far. `train` and `valid` are the curves: (step, loss).

    `best_step`: the measured step with the least validation loss. `waited`: measurements since. `chosen`: the
    validation batches that every measurement reads. `seen`: losses that are in no point of the curve yet.
    """

    step: int = 0
    train: list[tuple[int, float]] = field(default_factory=list)
    valid: list[tuple[int, float]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    chosen: list[int] | None = None
    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0
    stopped: bool = False


@dataclass
class Arrays:
    """The arrays of a run: of the optimizer, of the sum of gradients, of the best adapter."""

    trained: Mapping[str, mx.array]
    optimizer: Any
    sum: Any
    best: Mapping[str, mx.array]


def save(file: Path, progress: Progress, arrays: Arrays, order: Mapping[str, Any]) -> None:
    """Writes a checkpoint."""
    tensors = {_MODEL + name: array for name, array in arrays.trained.items()}
    tensors |= {_OPTIMIZER + name: array for name, array in tree_flatten(arrays.optimizer)}
    tensors |= {_SUM + name: array for name, array in tree_flatten(arrays.sum or {})}
    tensors |= {_BEST + name: array for name, array in arrays.best.items()}
    generator: Any = mx.random.state
    said = {
        "progress": json.dumps(asdict(progress)),
        "order": json.dumps(order),
        "random": json.dumps(generator[0].tolist()),
    }
    mx.save_safetensors(str(file), tensors, metadata=said)


def load(file: Path) -> tuple[Progress, Arrays, dict[str, Any]]:
    """What `save` wrote; mlx's generator goes on from there."""
    loaded: Any = mx.load(str(file), format="safetensors", return_metadata=True)
    tensors, said = loaded
    progress = Progress(**json.loads(said["progress"]))
    progress.train = [(step, loss) for step, loss in progress.train]
    progress.valid = [(step, loss) for step, loss in progress.valid]
    high, low = json.loads(said["random"])
    mx.random.seed(high << 32 | low)  # a seed is the key of the generator, as one number
    sums = _part(tensors, _SUM)
    arrays = Arrays(
        _part(tensors, _MODEL),
        tree_unflatten(list(_part(tensors, _OPTIMIZER).items())),
        tree_unflatten(list(sums.items())) if sums else None,
        _part(tensors, _BEST),
    )
    mx.eval(tensors)  # the file may be deleted from here on
    return progress, arrays, json.loads(said["order"])


def _part(tensors: Mapping[str, mx.array], prefix: str) -> dict[str, mx.array]:
    return {n.removeprefix(prefix): array for n, array in tensors.items() if n.startswith(prefix)}
