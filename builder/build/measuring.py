"""Measures what the weights of a target cost, and how far a target is from the exact model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.build.opening import open_adapter, open_base
from builder.build.shelves import shelf
from builder.console.events import Emit, Learning
from builder.keys import Key
from builder.plan.goals import Measured
from builder.plan.types import TargetPlan
from builder.project.measurements import keep, known
from builder.project.peaks import walking_memory
from builder.project.project import Project
from builder.project.watch import unchanged
from builder.spec.types import Quantization
from builder.store import blobs
from builder.store.disk import durable
from builder.store.holdings import usable_record

if TYPE_CHECKING:
    from builder.engine.rounding.points import Opened
    from builder.engine.rounding.sensitivity import Sensitivity
    from builder.engine.rounding.shelf import Shelf
    from builder.engine.rounding.text import Piece


def measured_costs(
    project: Project,
    plan: TargetPlan,
    key: Key,
    texts: Sequence[Piece],
    choices: Mapping[str, Sequence[Quantization]],
    emit: Emit,
) -> Measured:
    """What each weight costs as it is rounded in `plan`, on these sequences.

    It is measured once for all sizes. Raises BuildError.
    """
    from builder.engine.blas import accelerated
    from builder.engine.rounding.errors import errors

    at = plan.target.variant.quantization
    assert at is not None
    if (former := known(project.store, key, lambda text: _from_text(text, at))) is not None:
        return former
    calibrated = plan.target.variant.rounds_for_text
    with unchanged(project, plan), accelerated(threads=1), durable.explained(project.store.root):
        cost = _sensitivity(project, plan, texts, "gradient", emit, _shelf(project, plan)).costs()
        found = Measured(cost, errors(opened(project, plan), choices, _dtype(plan), calibrated), at)
    keep(project.store, key, "sensitivity", _to_text(found), plan.name)
    return found


class Comparison:
    """Compares models with the exact one, which runs once, on sequences that nothing was rounded for."""

    def __init__(self, project: Project, plan: TargetPlan, apart: Sequence[Piece], emit: Emit) -> None:
        self.project, self.plan, self.apart, self.emit = project, plan, apart, emit
        self.held = sum(sum(piece.counted) for piece in apart)
        self._exact: Any = None  # what its last layer returns
        self._shelf = _shelf(project, plan)  # keeps that too

    def divergence(self, plan: TargetPlan, what: str) -> float:
        """In nats for each token. `what` says in words what is compared. Raises BuildError."""
        from builder.engine.blas import accelerated

        explained = durable.explained(self.project.store.root)
        with unchanged(self.project, plan), accelerated(threads=1), explained:
            if self._exact is None:
                own = self._measured(self.plan, "the exact model")
                self._exact = own.exact()
            named = f"comparison with {what}"
            return self._measured(plan, named).divergence(self._exact)

    def _measured(self, plan: TargetPlan, part: str) -> Sensitivity:
        return _sensitivity(self.project, plan, self.apart, part, self.emit, self._shelf)


def _shelf(project: Project, plan: TargetPlan) -> Shelf:
    return shelf(project, walking_memory(plan))


def opened(project: Project, plan: TargetPlan) -> Opened:
    """The exact model of a plan, lazy."""
    from builder.engine.rounding.points import Opened
    from builder.engine.stream import cut

    model, _ = open_base(project, plan)
    return Opened(model, cut(model, open_adapter(project, plan), compiled=False))


def _dtype(plan: TargetPlan) -> Any:
    import mlx.core as mx

    return getattr(mx, plan.dtype) if plan.dtype else None


def _sensitivity(
    project: Project, plan: TargetPlan, pieces: Sequence[Piece], part: str, emit: Emit, kept: Shelf
) -> Sensitivity:
    """What measures a plan. `part` says in words what is measured."""
    import mlx.core as mx

    from builder.engine.rounding.sensitivity import Sensitivity

    def step(done: int, total: int) -> None:
        emit(Learning(plan.name, part, done, total, None))

    return Sensitivity(
        lambda: opened(project, plan),
        _files(project, plan) if plan.target.variant.rounds_for_text else None,
        plan.quantization,
        _dtype(plan),
        mx.array([piece.tokens for piece in pieces]),
        mx.array([piece.counted for piece in pieces], dtype=mx.float32),
        plan.name,
        step,
        kept,
    )


def _files(project: Project, plan: TargetPlan) -> dict[str, Path]:
    """Block -> its shard in the store. The session of the build keeps them. Raises StoreError."""
    found = {action.block: usable_record(project.store, action.key) for action in plan.actions}
    return {block: blobs.checked(project.store, record.blob) for block, record in found.items() if record}


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
