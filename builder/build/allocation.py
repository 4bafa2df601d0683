"""Chooses the bits of a target that asks for a size, by measuring. What was chosen is kept under its key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.build.blocks import Tally
from builder.build.calibrated import open_sequences, round_blocks
from builder.build.one_pass import make_missing, open_adapter, open_base
from builder.build.sharing import fetch, fetch_records
from builder.build.shelves import shelf
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.console.words import count
from builder.errors import BuildError, SourceChanged
from builder.keys import Key
from builder.plan.allocation import Allocation
from builder.plan.goals import allocation_key, chosen_bits, sensitivity_key, uniform, with_bits
from builder.plan.planning import Facts, facts_of, plan_alone
from builder.plan.types import TargetPlan, Unresolved
from builder.project import preflight
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.state import missing_actions
from builder.project.toolchain import made_by
from builder.project.watch import unchanged
from builder.spec.types import Target
from builder.store import blobs, records
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Record

if TYPE_CHECKING:
    from builder.engine.rounding.sensitivity import Sensitivity
    from builder.engine.rounding.text import Piece

SEQUENCES = 16  # of the calibration text, that the gradient is taken of


def choose_bits(project: Project, target: Target, emit: Emit) -> Allocation:
    """What was chosen. Measures nothing where it is in the store. Raises BuildError."""
    store, sources = project.store, project.planned_from()
    facts = facts_of(target, sources)
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    made = uniform(target, facts.base)
    key = fetch_bits(project, target, facts, emit)
    with acquire(store, [key], waiting(target.name, emit), "choice-"):
        if (known := project.allocation(key)) is not None:
            return known
        found = _measured(project, made, facts, sources.toolchain, emit)
        keep(project, key, found, target.name)
        return found


def fetch_bits(project: Project, target: Target, facts: Facts, emit: Emit) -> Key:
    """Pulls what somebody has chosen and measured; the key of what is chosen."""
    assert facts.text is not None
    toolchain = project.planned_from().toolchain
    key = allocation_key(target, facts.base, facts.adapter, facts.text, toolchain)
    made = uniform(target, facts.base)
    cost = sensitivity_key(made, facts.base, facts.adapter, facts.text, toolchain)
    fetch_records(project, [key, cost], emit)
    return key


def keep(project: Project, key: Key, found: Allocation, name: str) -> None:
    """Puts what was chosen for the target `name` into the store. Raises StoreError."""
    blob = blobs.ingest(project.store, [found.to_text().encode()])
    records.write(project.store, Record(key, "allocation", blob, {**made_by(), "target": name}))


def _measured(project: Project, made: Target, facts: Facts, toolchain: str, emit: Emit) -> Allocation:
    """Rounds with the same bits everywhere, measures, gives more bits, rounds again, and compares."""
    how, text = made.variant.quantization, facts.text
    assert how is not None
    assert text is not None
    common = plan_alone(made, facts, toolchain)
    emit(Note(f"{made.name}: {how.bits} bits for every weight fit. What each weight costs there is measured"))
    fetch(project, [common], emit)
    preflight.check(project, common, missing_actions(project.store, common), [common])
    with build_session(project.store, list(keys_of(common))):
        _make(project, common, emit)
        used, apart = open_sequences(project, common)
        key = sensitivity_key(made, facts.base, facts.adapter, text, toolchain)
        cost = _cost(project, common, key, used[:SEQUENCES], emit)
        more = chosen_bits(made, facts.base, cost)
        better = plan_alone(with_bits(made, how.bits, more), facts, toolchain)
        with build_session(project.store, list(keys_of(better))):
            _make(project, better, emit)
            before, after, held = _compared(project, common, better, apart, emit)
    kept = bool(more) and after < before
    said = f"{made.name}: KL on other text {before:.4f} with {how.bits} bits for every weight"
    which = "the second" if kept else "the first"
    emit(Note(f"{said}, {after:.4f} with more bits for {count(len(more), 'weight')}: {which} is kept"))
    return Allocation(
        how.bits, dict(sorted(more.items())), dict(sorted(cost.items())), before, after, held, kept
    )


def _make(project: Project, plan: TargetPlan, emit: Emit) -> None:
    """The blocks of a plan, without its view. Raises BuildError."""
    if plan.target.variant.rounds_for_text:
        round_blocks(project, plan, Tally(), emit)
    else:
        make_missing(project, [plan], Tally(), emit)


def _cost(
    project: Project, plan: TargetPlan, key: Key, used: Sequence[Piece], emit: Emit
) -> Mapping[str, float]:
    """What each weight costs on the sequences that are rounded for, measured once for all sizes."""
    from builder.engine.blas import accelerated

    record = usable_record(project.store, key)
    if record is not None:
        with suppress(BuildError, OSError, ValueError):
            found: dict[str, float] = json.loads(blobs.read(project.store, record.blob))
            return found
    with unchanged(project, plan), accelerated(threads=1), durable.explained(project.store.root):
        cost = _sensitivity(project, plan, used, "gradient", emit).shares().cost
    blob = blobs.ingest(project.store, [json.dumps(dict(sorted(cost.items()))).encode()])
    records.write(project.store, Record(key, "sensitivity", blob, {**made_by(), "target": plan.name}))
    return cost


def _compared(
    project: Project, common: TargetPlan, better: TargetPlan, apart: Sequence[Piece], emit: Emit
) -> tuple[float, float, int]:
    """The divergences of both on `apart`, which nothing was rounded for, and how many tokens they are of."""
    from builder.engine.blas import accelerated

    with unchanged(project, better), accelerated(threads=1), durable.explained(project.store.root):
        before = _sensitivity(project, common, apart, "comparison with the same bits", emit)
        after = _sensitivity(project, better, apart, "comparison with its own bits", emit)
        return before.divergence(), after.divergence(), round(before.count)


def _sensitivity(
    project: Project, plan: TargetPlan, pieces: Sequence[Piece], part: str, emit: Emit
) -> Sensitivity:
    """What measures a plan whose blocks are in the store. `part` says in words what is measured."""
    import mlx.core as mx

    from builder.engine.rounding.points import Opened
    from builder.engine.rounding.sensitivity import Sensitivity
    from builder.engine.stream import cut

    def opened() -> Opened:
        model, _ = open_base(project, plan)
        return Opened(model, cut(model, open_adapter(project, plan), compiled=False))

    def step(done: int, total: int) -> None:
        emit(Learning(plan.name, part, done, total, None))

    dtype: Any = getattr(mx, plan.dtype) if plan.dtype else None
    return Sensitivity(
        opened,
        _files(project, plan),
        plan.quantization,
        dtype,
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
