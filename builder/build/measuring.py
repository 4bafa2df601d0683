"""Measures what the weights of a target cost, and how far a target is from the exact model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.build.opening import open_adapter, open_base
from builder.build.shelves import shelf
from builder.console.events import Emit, Learning
from builder.errors import BuildError
from builder.keys import Key
from builder.plan.goals import Measured
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import made_by
from builder.project.watch import unchanged
from builder.spec.types import Quantization
from builder.store import blobs, records
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.types import Record

if TYPE_CHECKING:
    from builder.engine.rounding.points import Opened
    from builder.engine.rounding.sensitivity import Sensitivity
    from builder.engine.rounding.text import Piece


def measured_costs(
    project: Project,
    plan: TargetPlan,
    key: Key,
    used: Sequence[Piece],
    choices: Mapping[str, Sequence[Quantization]],
    emit: Emit,
) -> Measured:
    """What each weight costs as it is rounded in `plan`, on the sequences that are rounded for.

    It is measured once for all sizes. Raises BuildError.
    """
    from builder.engine.blas import accelerated
    from builder.engine.rounding.errors import errors

    at = plan.target.variant.quantization
    assert at is not None
    record = usable_record(project.store, key)
    if record is not None:
        with suppress(BuildError, OSError, ValueError, KeyError):
            return _from_text(blobs.read(project.store, record.blob).decode(), at)
    calibrated = plan.target.variant.rounds_for_text
    with unchanged(project, plan), accelerated(threads=1), durable.explained(project.store.root):
        cost = _sensitivity(project, plan, used, "gradient", emit).costs()
        found = Measured(cost, errors(_opened(project, plan), choices, _dtype(plan), calibrated), at)
    blob = blobs.ingest(project.store, [_to_text(found).encode()])
    records.write(project.store, Record(key, "sensitivity", blob, {**made_by(), "target": plan.name}))
    return found


class Comparison:
    """Compares models with the exact one, which runs once, on sequences that nothing was rounded for."""

    def __init__(self, project: Project, plan: TargetPlan, apart: Sequence[Piece], emit: Emit) -> None:
        self.project, self.plan, self.apart, self.emit = project, plan, apart, emit
        self.held = sum(sum(piece.counted) for piece in apart)
        self._exact: Any = None  # what its last layer returns

    def divergence(self, plan: TargetPlan, what: str) -> float:
        """In nats for each token. `what` says in words what is compared. Raises BuildError."""
        from builder.engine.blas import accelerated

        explained = durable.explained(self.project.store.root)
        with unchanged(self.project, plan), accelerated(threads=1), explained:
            if self._exact is None:
                own = _sensitivity(self.project, self.plan, self.apart, "the exact model", self.emit)
                self._exact = own.exact()
            named = f"comparison with {what}"
            return _sensitivity(self.project, plan, self.apart, named, self.emit).divergence(self._exact)


def _opened(project: Project, plan: TargetPlan) -> Opened:
    from builder.engine.rounding.points import Opened
    from builder.engine.stream import cut

    model, _ = open_base(project, plan)
    return Opened(model, cut(model, open_adapter(project, plan), compiled=False))


def _dtype(plan: TargetPlan) -> Any:
    import mlx.core as mx

    return getattr(mx, plan.dtype) if plan.dtype else None


def _sensitivity(
    project: Project, plan: TargetPlan, pieces: Sequence[Piece], part: str, emit: Emit
) -> Sensitivity:
    """What measures a plan. `part` says in words what is measured."""
    import mlx.core as mx

    from builder.engine.rounding.sensitivity import Sensitivity

    def step(done: int, total: int) -> None:
        emit(Learning(plan.name, part, done, total, None))

    return Sensitivity(
        lambda: _opened(project, plan),
        _files(project, plan) if plan.target.variant.rounds_for_text else None,
        plan.quantization,
        _dtype(plan),
        mx.array([piece.tokens for piece in pieces]),
        mx.array([piece.counted for piece in pieces], dtype=mx.float32),
        plan.name,
        step,
        shelf(project, plan),
    )


def _files(project: Project, plan: TargetPlan) -> dict[str, Path]:
    """Block -> its shard in the store. The session of the build keeps them."""
    found = {action.block: usable_record(project.store, action.key) for action in plan.actions}
    return {block: blobs.path(project.store, record.blob.digest) for block, record in found.items() if record}


def _to_text(found: Measured) -> str:
    errors = {
        path: [[how.bits, how.group_size, error] for how, error in each.items()]
        for path, each in found.errors.items()
    }
    return json.dumps({"cost": dict(found.cost), "errors": errors}, sort_keys=True)


def _from_text(text: str, at: Quantization) -> Measured:
    """What `_to_text` wrote. Raises ValueError, KeyError."""
    data = json.loads(text)
    errors = {
        path: {Quantization(bits, group): error for bits, group, error in each}
        for path, each in data["errors"].items()
    }
    return Measured(data["cost"], errors, at)
